# nlohmann-json, headers only: the system's package, or the one pip put beside the build tools.
find_package(nlohmann_json 3.11 QUIET CONFIG)
if(NOT nlohmann_json_FOUND)
  find_package(Python QUIET COMPONENTS Interpreter)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nlohmann_json as m; print(m.__path__[0])"
    OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "nlohmann-json is missing: install Debian's nlohmann-json3-dev, or "
      "nlohmann-json with pip for ${Python_EXECUTABLE}")
  endif()
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
  target_include_directories(nlohmann_json::nlohmann_json SYSTEM INTERFACE ${package}/include)
endif()
