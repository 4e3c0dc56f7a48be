# Finds what the build needs; each thing that is missing is one sentence that says what to install.

# 3.25.2 is the first to know nvcc's -std=c++20.
function(qat_check_cmake_for_cuda)
  if(CMAKE_VERSION VERSION_LESS 3.25.2)
    message(FATAL_ERROR "torchqat's CUDA sources need CMake 3.25.2 or newer, but this is ${CMAKE_VERSION}: "
                        "install a newer one with pip install cmake.")
  endif()
endfunction()

include(cmake/torch.cmake)
if(NOT Torch_FOUND)
  message(FATAL_ERROR "torchqat builds against PyTorch, which was not found: install torch>=2.11 and pass "
                      "-DCMAKE_PREFIX_PATH=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)').")
endif()
if(Torch_VERSION AND Torch_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "torchqat needs torch 2.11 or newer, but found ${Torch_VERSION}: "
                      "install it with pip install 'torch>=2.11'.")
endif()
if(TORCH_CXX_FLAGS MATCHES "_GLIBCXX_USE_CXX11_ABI=0")
  message(FATAL_ERROR "torchqat needs a torch built with the C++11 ABI, but the one found uses the old ABI: "
                      "install a current wheel with pip install --force-reinstall 'torch>=2.11'.")
endif()

# Targets of our own, so that flags and include folders travel with them and not through globals.
add_library(qat_torch INTERFACE)
target_link_libraries(qat_torch INTERFACE ${TORCH_LIBRARIES})
target_include_directories(qat_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
separate_arguments(QAT_TORCH_FLAGS UNIX_COMMAND "${TORCH_CXX_FLAGS}")
target_compile_options(qat_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${QAT_TORCH_FLAGS}>)

find_package(OpenMP QUIET COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(FATAL_ERROR "torchqat runs its kernels on torch's OpenMP threads, but the compiler has no OpenMP: "
                      "install one that has, with apt-get install g++ or, for clang, libomp-dev.")
endif()

find_package(yaml-cpp QUIET)
if(NOT yaml-cpp_FOUND)
  message(FATAL_ERROR "torchqat reads recipes with yaml-cpp, which was not found: "
                      "install it with apt-get install libyaml-cpp-dev.")
endif()
add_library(qat_yaml INTERFACE)
target_link_libraries(qat_yaml INTERFACE $<IF:$<TARGET_EXISTS:yaml-cpp::yaml-cpp>,yaml-cpp::yaml-cpp,yaml-cpp>)

find_package(nlohmann_json QUIET)
if(NOT nlohmann_json_FOUND)
  message(FATAL_ERROR "torchqat reads safetensors headers with nlohmann-json, which was not found: "
                      "install it with apt-get install nlohmann-json3-dev.")
endif()
add_library(qat_json INTERFACE)
target_link_libraries(qat_json INTERFACE nlohmann_json::nlohmann_json)

find_program(QAT_CCACHE ccache)
if(QAT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${QAT_CCACHE})
endif()
