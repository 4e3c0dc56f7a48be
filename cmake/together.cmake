# Most sources cost less to compile than what they include: those of a group are compiled as one. Names that are private to a
# source, in a namespace without a name, must then differ within its group; the compiler says where they do not.
option(QAT_TOGETHER "Compile sources in groups; OFF for tools that want a command for each." ON)

function(qat_in_groups target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${QAT_TOGETHER} UNITY_BUILD_MODE GROUP)
endfunction()

# qat_together(GROUP PATTERN...): sources of the target that is in groups.
function(qat_together group)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  file(GLOB sources CONFIGURE_DEPENDS ${ARGN})
  set_source_files_properties(${sources} PROPERTIES UNITY_GROUP ${group})
endfunction()
