# cmake -DFILES=a.js,b.js -DSYMBOL=kName -DOUTPUT=name.h -P embed_text.cmake: texts as a C++ constant.
string(REPLACE "," ";" FILES "${FILES}")
set(literals "")
foreach(file IN LISTS FILES)
    file(READ "${file}" text)
    if(text MATCHES "\\)page\"")
        message(FATAL_ERROR "${file} holds the delimiter of a raw string, )page\"")
    endif()
    string(APPEND literals "    R\"page(${text})page\"\n")
endforeach()
file(WRITE "${OUTPUT}" "#pragma once

#include <string_view>

namespace mixed_kv::tools {

inline constexpr std::string_view ${SYMBOL} =
${literals};

}  // namespace mixed_kv::tools
")
