// The part of ONNX Runtime's C interface that the operator uses, declared here because no package ships its headers.
//
// The interface is a table of functions that only ever grows, asked for by version. Positions and signatures are those
// of onnxruntime_c_api.h of API version 17, the first that has KernelContext_ParallelFor (ONNX Runtime 1.17).
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
using OrtFunction = void (*)();
using OrtApi = OrtFunction;  // the table's first entry

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

enum OrtErrorCode { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_FLOAT16 = 10, ORT_UINT64 = 13 };
enum OrtCharacteristic { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

struct OrtCustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  OrtElementType (*GetInputType)(const OrtCustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType (*GetOutputType)(const OrtCustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void* context);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  std::size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  std::size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // extern "C"

namespace awp::ort {

constexpr std::uint32_t kApiVersion = 17;

// A function of the table: its position and its type.
template <std::size_t Position, class Signature> struct Function {
  template <class... Arguments> auto operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<Signature*>(api[Position])(arguments...);
  }
};

constexpr Function<0, OrtStatus*(OrtErrorCode, const char* message)> CreateStatus;
constexpr Function<26, OrtStatus*(const char* name, OrtCustomOpDomain**)> CreateCustomOpDomain;
constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add;
constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;
constexpr Function<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
constexpr Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)> GetDimensionsCount;
constexpr Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t)> GetDimensions;
constexpr Function<64, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)> GetTensorShapeElementCount;
constexpr Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape;
constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char* name, std::int64_t*)> KernelInfoGetAttribute_int64;
constexpr Function<88, OrtStatus*(const OrtKernelContext*, std::size_t*)> KernelContext_GetInputCount;
constexpr Function<90, OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)> KernelContext_GetInput;
constexpr Function<91, OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t*, std::size_t, OrtValue**)>
    KernelContext_GetOutput;
constexpr Function<93, void(OrtStatus*)> ReleaseStatus;
constexpr Function<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;
constexpr Function<101, void(OrtCustomOpDomain*)> ReleaseCustomOpDomain;
constexpr Function<230, OrtStatus*(const OrtKernelInfo*, std::size_t*)> KernelInfo_GetInputCount;
constexpr Function<249, OrtStatus*(const OrtKernelInfo*, std::size_t, int* is_constant, const OrtValue**)>
    KernelInfoGetConstantInput_tensor;
constexpr Function<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, std::size_t), std::size_t total,
                                   std::size_t batches, void*)>
    KernelContext_ParallelFor;

}  // namespace awp::ort
