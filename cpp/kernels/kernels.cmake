# The sparse kernels and the operator library. One file per instruction set, each with its own flags: such a file includes
# nothing but intrinsics and table.h, so that no code compiled for one set is ever called by another.

set(AWP_KERNEL_SOURCES kernels/reference.cpp kernels/sparse_matmul.cpp kernels/choose.cpp core/cpu.cpp)
set(AWP_KERNEL_DEFINITIONS)

function(awp_add_kernel name definition)
  string(REPLACE ";" " " flags "${ARGN}")
  check_cxx_compiler_flag("${flags}" AWP_CAN_BUILD_KERNEL_${name})
  if(AWP_CAN_BUILD_KERNEL_${name})
    set_source_files_properties(kernels/${name}.cpp PROPERTIES COMPILE_OPTIONS "${ARGN}")
    set(AWP_KERNEL_SOURCES ${AWP_KERNEL_SOURCES} kernels/${name}.cpp PARENT_SCOPE)
    set(AWP_KERNEL_DEFINITIONS ${AWP_KERNEL_DEFINITIONS} ${definition} PARENT_SCOPE)
  endif()
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(AWP_KERNEL_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
  awp_add_kernel(avx2 AWP_HAVE_AVX2 ${AWP_KERNEL_FLAGS_avx2})
  set(AWP_KERNEL_FLAGS_avx512 ${AWP_KERNEL_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi2
    -mavx512vnni)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # gcc's own headers start a register from itself, and gcc then warns of it (its bug 105593).
    list(APPEND AWP_KERNEL_FLAGS_avx512 -Wno-maybe-uninitialized)
  endif()
  awp_add_kernel(avx512vnni AWP_HAVE_AVX512 ${AWP_KERNEL_FLAGS_avx512})
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  awp_add_kernel(neon AWP_HAVE_NEON -march=armv8-a)
  awp_add_kernel(neondot AWP_HAVE_NEONDOT -march=armv8.2-a+dotprod)
endif()

add_library(awp_kernels STATIC ${AWP_KERNEL_SOURCES})
awp_set_options(awp_kernels)
target_compile_definitions(awp_kernels PRIVATE ${AWP_KERNEL_DEFINITIONS})

if(AWP_BUILD_TESTS)
  # Every table the machine runs is tested in one program, the AVX-512 one also on an emulation of its instructions.
  foreach(test sparse sparse_emulated)
    add_executable(test_${test} tests/test_${test}.cpp)
    awp_set_options(test_${test})
    target_link_libraries(test_${test} PRIVATE awp_kernels Threads::Threads)
    add_test(NAME ${test} COMMAND test_${test})
  endforeach()
endif()

if(AWP_BUILD_BENCH AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_executable(bench_sparse bench/bench_sparse.cpp)
  awp_set_options(bench_sparse)
  target_link_libraries(bench_sparse PRIVATE awp_kernels Threads::Threads)
endif()

if(AWP_BUILD_OPS AND NOT AWP_SANITIZE)
  add_library(awp_edge_ops MODULE ops/sparse_op.cpp ops/plain.cpp)
  awp_set_options(awp_edge_ops)
  target_compile_definitions(awp_edge_ops PRIVATE AWP_VERSION="${AWP_VERSION}")
  target_link_libraries(awp_edge_ops PRIVATE awp_kernels)
  if(NOT APPLE)
    # Nothing of the C++ library is asked of the device, and nothing but the operator's entry points is seen.
    target_link_options(awp_edge_ops PRIVATE -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL)
  endif()
  install(TARGETS awp_edge_ops LIBRARY DESTINATION awp_edge)
endif()
