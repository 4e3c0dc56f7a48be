# The CUDA sources, in one target that is part of qat_ops beside a CUDA build of torch, and that is else only compiled,
# when asked: so neither they nor the way they are built can rot on machines without a GPU.

# torch's own configuration enables CUDA where it has CUDA.
if(NOT TARGET torch_cuda)
  target_sources(qat_ops_objects PRIVATE ops/no_cuda.cpp)  # must stay the last of its sources
  if(NOT QAT_CHECK_CUDA)
    return()
  endif()
  find_program(QAT_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(NOT QAT_NVCC)
    message(FATAL_ERROR "QAT_CHECK_CUDA is ON, but nvcc was not found: install the CUDA Toolkit or pass -DQAT_CHECK_CUDA=OFF.")
  endif()
  set(CMAKE_CUDA_COMPILER ${QAT_NVCC})
  set(CMAKE_CUDA_COMPILER_FORCED ON)  # nothing is linked, so nvcc alone will do
endif()
qat_check_cmake_for_cuda()
enable_language(CUDA)
# torch adds the architectures of the GPUs that it finds here or, where it finds none, those of a list, of which nvcc 13
# refuses some; which we compile for is said below.
string(REGEX REPLACE " *-gencode arch=[^ ]+" "" CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS}")

# Of T4, A100, RTX 30, L4 and RTX 40, H100, B200, RTX 50 those that the toolkit knows, and the code that the driver
# compiles for any newer one.
set(QAT_ARCHITECTURES ${QAT_CUDA_ARCHITECTURES})
if(NOT QAT_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE QAT_KNOWN_ARCHITECTURES)
  foreach(arch 75 80 86 89 90 100 120)
    if(QAT_KNOWN_ARCHITECTURES MATCHES "compute_${arch}\n")
      list(APPEND QAT_ARCHITECTURES ${arch}-real)
    endif()
  endforeach()
  string(REGEX REPLACE "-real$" "" QAT_ARCHITECTURES "${QAT_ARCHITECTURES}")
endif()

# In two groups (cmake/together.cmake), since nvcc parses what they include four times for each source.
set(QAT_CUDA_COMPILED ${QAT_CUDA_SOURCES})
if(QAT_TOGETHER)
  set(QAT_CUDA_COMPILED)
  foreach(group 0 1)
    set(QAT_CUDA_INCLUDES "")
    set(place 0)
    foreach(source IN LISTS QAT_CUDA_SOURCES)
      math(EXPR place "1 - ${place}")
      if(place EQUAL group)
        string(APPEND QAT_CUDA_INCLUDES "#include \"${source}\"\n")
      endif()
    endforeach()
    set(together ${CMAKE_BINARY_DIR}/cuda_together/group_${group}.cu)
    file(CONFIGURE OUTPUT ${together} CONTENT "@QAT_CUDA_INCLUDES@" @ONLY)
    list(APPEND QAT_CUDA_COMPILED ${together})
  endforeach()
endif()
add_library(qat_cuda OBJECT EXCLUDE_FROM_ALL ${QAT_CUDA_COMPILED})
set_target_properties(qat_cuda PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
  CUDA_ARCHITECTURES "${QAT_ARCHITECTURES}" CUDA_RUNTIME_LIBRARY Shared)
target_compile_options(qat_cuda PRIVATE -fmad=false --extended-lambda --expt-relaxed-constexpr)
target_include_directories(qat_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${QAT_GENERATED})
target_link_libraries(qat_cuda PRIVATE qat_torch)

if(TARGET torch_cuda)
  list(APPEND QAT_OPS_OBJECTS $<TARGET_OBJECTS:qat_cuda>)
else()
  # A CPU build of torch ships c10/cuda without this generated header.
  set(QAT_CUDA_STUB ${CMAKE_BINARY_DIR}/cuda_stub)
  file(CONFIGURE OUTPUT ${QAT_CUDA_STUB}/c10/cuda/impl/cuda_cmake_macros.h
    CONTENT "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
  target_include_directories(qat_cuda SYSTEM PRIVATE ${QAT_CUDA_STUB})
endif()
