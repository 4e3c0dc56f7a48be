# Headers of others that most sources of a target include are parsed once for each target: a third less time to compile.
option(QAT_PRECOMPILE_HEADERS "Parse what sources include of torch once for each target." ON)

function(qat_precompile target)
  if(NOT QAT_PRECOMPILE_HEADERS)
    return()
  endif()
  target_precompile_headers(${target} PRIVATE ${ARGN})
  # Without it ccache compiles anew, each time, what uses them.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
endfunction()

# The sources of a folder, which include so little of torch that they are quicker without.
function(qat_not_precompiled folder)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cpp)
  set_source_files_properties(${sources} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
endfunction()
