# What the two shared libraries have in common: their version, in their name, and what they show.
set(QAT_SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})  # until 1.0 classes change with any minor version
set(QAT_EXPORTS ${CMAKE_CURRENT_LIST_DIR}/exports.map)

function(qat_library target)
  # Templates of others, such as std::vector<at::Tensor>, are visible whatever the compiler is told.
  target_link_options(${target} PRIVATE LINKER:--version-script=${QAT_EXPORTS})
  set_target_properties(${target} PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${QAT_SOVERSION} LINK_DEPENDS ${QAT_EXPORTS})
  qat_warnings(${target})
endfunction()
