// The C boundary of the test kernels: an exception comes back as its text.
#pragma once

#include <exception>
#include <string>

#define ENTRY extern "C" __attribute__((visibility("default"))) const char*

template <class F>
const char* run(F function) {
  static std::string text;
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}
