// Operators for ONNX Runtime, for a packed sparse INT4 weight W: awp_edge::SparseMatMulNBits, y = A W^T, and
// awp_edge::SparseGatedMatMulNBits, y = silu(A G^T) (A U^T) with the rows of W those of G, then those of U (SwiGLU).
//
// Inputs: A float [..., K]; masks uint64; codes uint8; scales float16; zeros uint64 (optional); offsets uint64 (optional).
// All but A must be constants of the model: they are checked once, when the session is made, and used where they lie, or
// for single tokens from a copy, see kernels/expansion.h.
// Attributes, all integers: format_version, K, N, block_size, kept, interleaved, accuracy_level.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "../kernels/expansion.h"
#include "ort_abi.h"
#include "version.h"

namespace {

using namespace awp::kernels;
namespace ort = awp::ort;

constexpr std::size_t kMaxDimensions = 8;
constexpr std::size_t kInputs = 6;
const OrtElementType kTypes[kInputs] = {ORT_FLOAT, ORT_UINT64, ORT_UINT8, ORT_FLOAT16, ORT_UINT64, ORT_UINT64};

struct Kernel {
  const OrtApi* api;
  Weights weights;
  const Table* table;
  bool interleaved;
  Level level;
  bool given[kInputs];                          // which constants there are
  std::unique_ptr<void, Free> copies[kInputs];  // of constants that do not lie at a multiple of their element's size
  Expansion expansion;
};

OrtStatus* refuse(const OrtApi* api, const char* what) {
  char message[256];
  std::snprintf(message, sizeof message, "awp_edge: %s", what);
  return ort::CreateStatus(api, ORT_INVALID_ARGUMENT, message);
}

struct Shape {
  std::int64_t dimensions[kMaxDimensions];
  std::size_t count = 0, elements = 0;
};

OrtStatus* shape_of(const OrtApi* api, const OrtValue* value, Shape* shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* bad = ort::GetTensorTypeAndShape(api, value, &info)) return bad;
  OrtStatus* bad = ort::GetDimensionsCount(api, info, &shape->count);
  if (bad == nullptr && shape->count > kMaxDimensions) bad = refuse(api, "a tensor has more than 8 dimensions");
  if (bad == nullptr) bad = ort::GetDimensions(api, info, shape->dimensions, shape->count);
  if (bad == nullptr) bad = ort::GetTensorShapeElementCount(api, info, &shape->elements);
  ort::ReleaseTensorTypeAndShapeInfo(api, info);
  return bad;
}

// A constant's data and number of elements; null data where the node leaves it out. A file that a runtime maps may hold
// it at any offset: then it is copied.
template <class T>
OrtStatus* constant(Kernel* kernel, const OrtKernelInfo* info, std::size_t index, const T** data, std::size_t* size) {
  const OrtApi* api = kernel->api;
  *data = nullptr;
  *size = 0;
  std::size_t inputs = 0;
  if (OrtStatus* bad = ort::KernelInfo_GetInputCount(api, info, &inputs)) return bad;
  if (index >= inputs) return nullptr;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  if (OrtStatus* bad = ort::KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value)) return bad;
  if (!is_constant || value == nullptr) return nullptr;
  Shape shape;
  if (OrtStatus* bad = shape_of(api, value, &shape)) return bad;
  void* bytes = nullptr;
  if (OrtStatus* bad = ort::GetTensorMutableData(api, const_cast<OrtValue*>(value), &bytes)) return bad;
  *size = shape.elements;
  if (reinterpret_cast<std::uintptr_t>(bytes) % alignof(T) != 0) {
    kernel->copies[index].reset(std::malloc(shape.elements * sizeof(T)));
    if (!kernel->copies[index]) return refuse(api, "out of memory");
    bytes = std::memcpy(kernel->copies[index].get(), bytes, shape.elements * sizeof(T));
  }
  *data = static_cast<const T*>(bytes);
  return nullptr;
}

OrtStatus* read_weights(Kernel* kernel, const OrtKernelInfo* info, Packed* packed) {
  const OrtApi* api = kernel->api;
  const auto attribute = [&](const char* name, std::int64_t* to) {
    return ort::KernelInfoGetAttribute_int64(api, info, name, to);
  };
  if (OrtStatus* bad = attribute("N", &packed->rows)) return bad;
  if (OrtStatus* bad = attribute("K", &packed->inputs)) return bad;
  if (OrtStatus* bad = attribute("block_size", &packed->group)) return bad;
  if (OrtStatus* bad = attribute("kept", &packed->kept)) return bad;
  if (OrtStatus* bad = constant(kernel, info, 1, &packed->masks, &packed->n_masks)) return bad;
  if (OrtStatus* bad = constant(kernel, info, 2, &packed->codes, &packed->n_codes)) return bad;
  if (OrtStatus* bad = constant(kernel, info, 3, &packed->scales, &packed->n_scales)) return bad;
  if (OrtStatus* bad = constant(kernel, info, 4, &packed->zeros, &packed->n_zeros)) return bad;
  return constant(kernel, info, 5, &packed->offsets, &packed->n_offsets);
}

OrtStatus* read_options(const OrtApi* api, const OrtKernelInfo* info, Kernel* kernel) {
  std::int64_t version = 0, interleaved = 0, level = 0;
  if (OrtStatus* bad = ort::KernelInfoGetAttribute_int64(api, info, "format_version", &version)) return bad;
  if (OrtStatus* bad = ort::KernelInfoGetAttribute_int64(api, info, "interleaved", &interleaved)) return bad;
  if (OrtStatus* bad = ort::KernelInfoGetAttribute_int64(api, info, "accuracy_level", &level)) return bad;
  if (version != kFormatVersion) return refuse(api, "another format_version than this library reads; export again");
  if (level != 0 && level != 4) return refuse(api, "accuracy_level must be 0 or 4");
  if (interleaved != 0 && interleaved != 1) return refuse(api, "interleaved must be 0 or 1");
  kernel->interleaved = interleaved == 1;
  kernel->level = static_cast<Level>(level);
  kernel->table = choose(std::getenv("AWP_ISA"));
  return kernel->table ? nullptr : refuse(api, "AWP_ISA names an instruction set that this machine does not run");
}

template <bool Gated>
OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  std::unique_ptr<Kernel> kernel(new (std::nothrow) Kernel{});
  if (!kernel) return refuse(api, "out of memory");
  kernel->api = api;
  if (OrtStatus* bad = read_options(api, info, kernel.get())) return bad;
  Packed packed{};
  packed.gated = Gated;
  if (OrtStatus* bad = read_weights(kernel.get(), info, &packed)) return bad;
  if (!packed.masks || !packed.codes || !packed.scales) return refuse(api, "weights must be constants of the model");
  if (const char* wrong = check(packed, &kernel->weights)) return refuse(api, wrong);
  kernel->expansion.prepare(kernel->weights, *kernel->table);
  const bool given[kInputs] = {true, true, true, true, packed.zeros != nullptr, packed.offsets != nullptr};
  std::memcpy(kernel->given, given, sizeof given);
  *out = kernel.release();
  return nullptr;
}

// Something that was no constant when the session was made must not turn up when it runs.
OrtStatus* check_inputs(const Kernel& kernel, const OrtKernelContext* context) {
  std::size_t count = 0;
  if (OrtStatus* bad = ort::KernelContext_GetInputCount(kernel.api, context, &count)) return bad;
  for (std::size_t i = 4; i < count && i < kInputs; ++i) {
    const OrtValue* value = nullptr;
    if (OrtStatus* bad = ort::KernelContext_GetInput(kernel.api, context, i, &value)) return bad;
    if ((value != nullptr) != kernel.given[i]) return refuse(kernel.api, "zeros and offsets must be constants of the model");
  }
  return nullptr;
}

struct Pool {
  const OrtApi* api;
  const OrtKernelContext* context;
  OrtStatus* bad;
};

void run_parallel(void* context, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  Pool& pool = *static_cast<Pool*>(context);
  OrtStatus* bad = ort::KernelContext_ParallelFor(pool.api, pool.context, task, count, std::size_t{0}, data);
  if (bad == nullptr) return;
  if (pool.bad != nullptr) ort::ReleaseStatus(pool.api, pool.bad);
  pool.bad = bad;
}

OrtStatus* compute(void* op_kernel, OrtKernelContext* context) {
  Kernel& kernel = *static_cast<Kernel*>(op_kernel);
  const OrtApi* api = kernel.api;
  if (OrtStatus* bad = check_inputs(kernel, context)) return bad;
  const OrtValue* a = nullptr;
  if (OrtStatus* bad = ort::KernelContext_GetInput(api, context, std::size_t{0}, &a)) return bad;
  Shape shape;
  if (OrtStatus* bad = shape_of(api, a, &shape)) return bad;
  if (shape.count == 0 || shape.dimensions[shape.count - 1] != static_cast<std::int64_t>(kernel.weights.inputs))
    return refuse(api, "the last dimension of A must be K");
  shape.dimensions[shape.count - 1] = static_cast<std::int64_t>(kernel.weights.outputs());
  OrtValue* output = nullptr;
  if (OrtStatus* bad = ort::KernelContext_GetOutput(api, context, std::size_t{0}, shape.dimensions, shape.count, &output))
    return bad;
  void *x = nullptr, *y = nullptr;
  if (OrtStatus* bad = ort::GetTensorMutableData(api, const_cast<OrtValue*>(a), &x)) return bad;
  if (OrtStatus* bad = ort::GetTensorMutableData(api, output, &y)) return bad;
  Pool pool{api, context, nullptr};
  const Inputs inputs{static_cast<const float*>(x), shape.elements / kernel.weights.inputs, kernel.interleaved, kernel.level};
  const bool done =
      kernel.expansion.multiply(kernel.weights, *kernel.table, inputs, static_cast<float*>(y), {run_parallel, &pool});
  if (pool.bad != nullptr) return pool.bad;
  return done ? nullptr : refuse(api, "out of memory");
}

// The plain functions of the first interface are never called: version says that the later ones are there.
template <bool Gated>
const OrtCustomOp kOperator = {
    ort::kApiVersion,
    nullptr,
    [](const OrtCustomOp*) { return Gated ? "SparseGatedMatMulNBits" : "SparseMatMulNBits"; },
    [](const OrtCustomOp*) { return "CPUExecutionProvider"; },
    [](const OrtCustomOp*, std::size_t index) { return kTypes[index]; },
    [](const OrtCustomOp*) { return kInputs; },
    [](const OrtCustomOp*, std::size_t) { return ORT_FLOAT; },
    [](const OrtCustomOp*) { return std::size_t{1}; },
    nullptr,
    [](void* kernel) { delete static_cast<Kernel*>(kernel); },
    [](const OrtCustomOp*, std::size_t index) { return index < 4 ? ORT_REQUIRED : ORT_OPTIONAL; },
    [](const OrtCustomOp*, std::size_t) { return ORT_REQUIRED; },
    [](const OrtCustomOp*, std::size_t) { return 0; },
    [](const OrtCustomOp*) { return 0; },
    [](const OrtCustomOp*) { return 0; },
    [](const OrtCustomOp*) { return 0; },
    [](const OrtCustomOp*) { return 0; },
    create<Gated>,
    compute,
    nullptr,
    [](const OrtCustomOp*) { return 1; },
    [](const OrtCustomOp*) { return 1; },
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

// One domain for all sessions of the process: a session keeps pointing at it.
struct Domain {
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* bad = nullptr;
  explicit Domain(const OrtApi* api) {
    bad = ort::CreateCustomOpDomain(api, "awp_edge", &domain);
    if (bad == nullptr) bad = ort::CustomOpDomain_Add(api, domain, &kOperator<false>);
    if (bad == nullptr) bad = ort::CustomOpDomain_Add(api, domain, &kOperator<true>);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                                const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Only the oldest table can carry the message.
    return ort::CreateStatus(base->GetApi(1), ORT_FAIL, "awp_edge needs ONNX Runtime 1.17 or newer");
  }
  static const Domain domain(api);
  if (domain.bad != nullptr) return ort::CreateStatus(api, ORT_FAIL, "awp_edge could not register its operators");
  return ort::AddCustomOpDomain(api, options, domain.domain);
}
