# What `cmake --install` puts where a C++ program's find_package(torchqat) finds it: libraries, headers, targets. The Python
# package installs itself, as the component `python` (python/bindings/CMakeLists.txt).

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(QAT_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/torchqat)
set_target_properties(qat_ops PROPERTIES EXPORT_NAME ops)
# Beside each other; and in a build for C++ alone, where LibTorch lay. Wheels must not say where they were built.
set(QAT_RPATH "$ORIGIN")
if(NOT QAT_BUILD_PYTHON)
  list(APPEND QAT_RPATH ${TORCH_INSTALL_PREFIX}/lib)
endif()
set_target_properties(qat qat_ops PROPERTIES INSTALL_RPATH "${QAT_RPATH}")

# Of a library and the two links to it, by which programs are linked and loaded.
install(TARGETS qat qat_ops EXPORT torchqatTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat)
install(EXPORT torchqatTargets NAMESPACE qat:: DESTINATION ${QAT_CMAKE_DIR})

# Those of which QAT_API shows something, and what they include. They need nothing but LibTorch: YAML and JSON stay inside.
install(DIRECTORY qat DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat FILES_MATCHING PATTERN "*.h"
  PATTERN yaml_section.h EXCLUDE PATTERN "*_reader.h" EXCLUDE PATTERN numbers.h EXCLUDE PATTERN key_log.h EXCLUDE
  PATTERN settings.h EXCLUDE
  PATTERN matcher.h EXCLUDE PATTERN stage_checks.h EXCLUDE PATTERN width_name.h EXCLUDE
  PATTERN damped_factor.h EXCLUDE PATTERN in_order.h EXCLUDE PATTERN full_precision.h EXCLUDE
  PATTERN coordinate_descent.h EXCLUDE PATTERN gptq_solver.h EXCLUDE PATTERN row_feedback.h EXCLUDE
  PATTERN fold.h EXCLUDE PATTERN input_tap.h EXCLUDE PATTERN pending.h EXCLUDE PATTERN spec_json.h EXCLUDE
  PATTERN minifloat.h EXCLUDE PATTERN shared_outer_scale.h EXCLUDE
  REGEX "formats/(awq|block_floats|gguf_.*|gptq|mlx|modelopt|onnx|plain).h" EXCLUDE)
install(DIRECTORY ops/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat/qat/ops FILES_MATCHING
  PATTERN "*.h" PATTERN arguments.h EXCLUDE PATTERN call.h EXCLUDE PATTERN kernels.h EXCLUDE
  PATTERN candidates.h EXCLUDE
  PATTERN cpu EXCLUDE PATTERN cuda EXCLUDE PATTERN autograd EXCLUDE PATTERN autocast EXCLUDE)
install(FILES ${QAT_GENERATED}/qat/built_with.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat/qat)

configure_package_config_file(cmake/torchqatConfig.cmake.in ${CMAKE_BINARY_DIR}/torchqatConfig.cmake
  INSTALL_DESTINATION ${QAT_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/torchqatConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/torchqatConfig.cmake ${CMAKE_BINARY_DIR}/torchqatConfigVersion.cmake cmake/torch.cmake
  DESTINATION ${QAT_CMAKE_DIR})
