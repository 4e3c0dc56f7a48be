# The CUDA sources: part of qat_ops beside a CUDA build of torch, else only compiled when asked, so that
# they cannot rot on machines without a GPU.

set(QAT_NVCC_FLAGS -fmad=false --extended-lambda --expt-relaxed-constexpr -O3 -std=c++20)

if(TARGET torch_cuda)
  enable_language(CUDA)
  target_sources(qat_ops PRIVATE ${QAT_CUDA_SOURCES})
  set_target_properties(qat_ops PROPERTIES CUDA_STANDARD 20 CUDA_ARCHITECTURES "${QAT_CUDA_ARCHITECTURES}")
  target_compile_options(qat_ops PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--extended-lambda;--expt-relaxed-constexpr>)
endif()

if(QAT_CHECK_CUDA)
  find_program(QAT_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(NOT QAT_NVCC)
    message(FATAL_ERROR "QAT_CHECK_CUDA is ON, but nvcc was not found: install the CUDA Toolkit or pass -DQAT_CHECK_CUDA=OFF.")
  endif()
  # A CPU build of torch ships c10/cuda without this generated header.
  set(QAT_CUDA_STUB ${CMAKE_BINARY_DIR}/cuda_stub)
  file(WRITE ${QAT_CUDA_STUB}/c10/cuda/impl/cuda_cmake_macros.h "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
  set(QAT_GENCODE)
  foreach(arch IN LISTS QAT_CUDA_ARCHITECTURES)
    list(APPEND QAT_GENCODE -gencode arch=compute_${arch},code=sm_${arch})
  endforeach()
  set(QAT_TORCH_INCLUDES)
  foreach(folder IN LISTS TORCH_INCLUDE_DIRS)
    list(APPEND QAT_TORCH_INCLUDES -isystem ${folder})
  endforeach()
  file(GLOB QAT_HEADERS CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/ops/*.h ${PROJECT_SOURCE_DIR}/ops/cuda/*.cuh)
  set(QAT_CUDA_OBJECTS)
  foreach(source IN LISTS QAT_CUDA_SOURCES)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda_check/${name}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda_check
      COMMAND ${QAT_NVCC} ${QAT_NVCC_FLAGS} ${QAT_GENCODE} -Xcompiler -fPIC -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
              -I${PROJECT_SOURCE_DIR} -I${QAT_GENERATED} -isystem ${QAT_CUDA_STUB} ${QAT_TORCH_INCLUDES}
      DEPENDS ${source} ${QAT_HEADERS}
      COMMENT "Compiling ${source} for ${QAT_CUDA_ARCHITECTURES}"
      VERBATIM)
    list(APPEND QAT_CUDA_OBJECTS ${object})
  endforeach()
  add_custom_target(qat_cuda_check DEPENDS ${QAT_CUDA_OBJECTS})
endif()
