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

install(TARGETS qat qat_ops EXPORT torchqatTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat)
install(EXPORT torchqatTargets NAMESPACE qat:: DESTINATION ${QAT_CMAKE_DIR})

# Those that need nothing but LibTorch: YAML and JSON stay inside the library.
install(DIRECTORY qat DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat FILES_MATCHING
  PATTERN "*.h" PATTERN yaml_section.h EXCLUDE PATTERN spec_json.h EXCLUDE)
install(DIRECTORY ops/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat/qat/ops FILES_MATCHING
  PATTERN "*.h" PATTERN cpu EXCLUDE PATTERN cuda EXCLUDE PATTERN autograd EXCLUDE PATTERN autocast EXCLUDE)
install(FILES ${QAT_GENERATED}/qat/built_with.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchqat/qat)

configure_package_config_file(cmake/torchqatConfig.cmake.in ${CMAKE_BINARY_DIR}/torchqatConfig.cmake
  INSTALL_DESTINATION ${QAT_CMAKE_DIR})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/torchqatConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/torchqatConfig.cmake ${CMAKE_BINARY_DIR}/torchqatConfigVersion.cmake cmake/torch.cmake
  DESTINATION ${QAT_CMAKE_DIR})
