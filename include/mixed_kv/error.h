#pragma once

#include <stdexcept>

namespace mixed_kv {

// Thrown by construction, configuration and file handling. what() is one line that says what was
// refused, where, and which values led to it. Hot functions never throw.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace mixed_kv
