# Warnings and sanitizers for one target.
function(qat_warnings target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
  set(sanitizers ${QAT_SANITIZE})
  if(QAT_FUZZ)
    set(sanitizers address,undefined)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
  endif()
  if(sanitizers)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers};-fno-sanitize-recover=all;-fno-omit-frame-pointer;-g>)
    # gcc 12 sees uninitialized members in its own std::regex then.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
    target_link_options(${target} PUBLIC -fsanitize=${sanitizers})
  endif()
  if(QAT_COVERAGE)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:--coverage;-O0>)
    target_link_options(${target} PUBLIC --coverage)
  endif()
endfunction()
