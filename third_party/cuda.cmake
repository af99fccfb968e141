# MM_CUDA: ON builds the CUDA backend for sm_90a alone, OFF builds backend/no_cuda.cpp in its place,
# AUTO is ON where a CUDA 13 compiler is found. Sets MM_CUDA_BUILT to ON or OFF, and says which on
# one line. The runtime library is linked statically; the driver is looked up when it is needed.
include(cuda_toolkit)
set(MM_CUDA AUTO CACHE STRING "the CUDA backend: AUTO, ON or OFF")
set_property(CACHE MM_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT MM_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MM_CUDA: expected AUTO, ON or OFF, got '${MM_CUDA}'")
endif()

set(MM_CUDA_BUILT OFF)
set(nvcc "")
if(MM_CUDA STREQUAL "OFF")
  set(why "MM_CUDA=OFF")
elseif(CMAKE_VERSION VERSION_LESS 3.28)
  set(why "CMake is ${CMAKE_VERSION}, expected 3.28 or newer, which knows C++20 of CUDA 13")
else()
  mm_find_nvcc(nvcc why)
endif()
if(nvcc)
  set(MM_CUDA_BUILT ON)
  set(CMAKE_CUDA_COMPILER ${nvcc} CACHE FILEPATH "nvcc of CUDA 13" FORCE)
  if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  find_package(CUDAToolkit 13 REQUIRED)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  message(STATUS "CUDA backend: on, sm_90a, ${nvcc} ${CMAKE_CUDA_COMPILER_VERSION}")
elseif(MM_CUDA STREQUAL "ON")
  message(FATAL_ERROR "MM_CUDA=ON: ${why}; install CUDA 13, or with pip nvidia-cuda-nvcc, "
    "nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-runtime and nvidia-cuda-cccl 13.0")
else()
  message(STATUS "CUDA backend: off, ${why}")
endif()

# Kernels, as flags of the host code elsewhere: no contraction on either side, so that a fused
# multiply-add is where it is written; every warning of nvcc, g++ and ptxas, a spilled register
# and local memory among them, ends the build. -Wpedantic is left out: nvcc hands g++ lines of its
# own.
set(MM_CUDA_OPTIONS --fmad=false --expt-relaxed-constexpr -Werror=all-warnings
  -Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror
  -Xcompiler=-Wall,-Wextra,-Wshadow,-Werror,-ffp-contract=off,-fno-math-errno
  -Xcompiler=-fstack-protector-strong)
