# Finds torch. One that was built with CUDA wants the CUDA Toolkit as soon as CMake asks for it, although its half for the CPU
# can be built against without: then torchqat is built for the CPU alone, from the folders of the wheel.

find_file(QAT_TORCH_CONFIG Torch/TorchConfig.cmake PATHS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES share/cmake NO_CACHE)
get_filename_component(QAT_TORCH_ROOT "${QAT_TORCH_CONFIG}/../../../.." ABSOLUTE)
set(QAT_CPU_HALF OFF)
if(EXISTS ${QAT_TORCH_ROOT}/lib/libtorch_cuda.so)
  find_package(CUDAToolkit QUIET)
  if(NOT TARGET CUDA::cublas OR NOT TARGET CUDA::nvrtc)
    set(QAT_CPU_HALF ON)
  elseif(COMMAND qat_check_cmake_for_cuda)  # by torchqat's own build, before torch's configuration stumbles over it
    qat_check_cmake_for_cuda()
  endif()
endif()

if(QAT_CPU_HALF)
  message(STATUS "torch has CUDA, but the CUDA Toolkit was not found: torchqat is built for the CPU alone.")
  set(TORCH_INSTALL_PREFIX ${QAT_TORCH_ROOT})
  set(TORCH_INCLUDE_DIRS ${QAT_TORCH_ROOT}/include ${QAT_TORCH_ROOT}/include/torch/csrc/api/include)
  set(TORCH_LIBRARIES)
  foreach(name torch torch_cpu c10)
    list(APPEND TORCH_LIBRARIES ${QAT_TORCH_ROOT}/lib/lib${name}.so)
  endforeach()
  # What torch's libraries need in turn, they find by themselves when they are loaded.
  list(APPEND TORCH_LIBRARIES -Wl,--allow-shlib-undefined -Wl,--no-as-needed)
  set(TORCH_CXX_FLAGS "")
  file(STRINGS ${QAT_TORCH_ROOT}/include/torch/headeronly/version.h QAT_TORCH_VERSION REGEX "_VERSION_M(AJOR|INOR) [0-9]+")
  string(REGEX REPLACE "[^0-9]*([0-9]+)[^0-9]+([0-9]+).*" "\\1.\\2" Torch_VERSION "${QAT_TORCH_VERSION}")
  set(Torch_FOUND ON)
else()
  find_package(Torch QUIET)
endif()
