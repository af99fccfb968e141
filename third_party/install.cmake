# cmake --install: headers, the library and the package `find_package(mmengine)` finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mmengine DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS mmengine EXPORT mmengine-targets)
install(EXPORT mmengine-targets NAMESPACE mmengine::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mmengine)
set(dependencies "find_dependency(Threads)\n")
if(MM_CUDA_BUILT AND NOT BUILD_SHARED_LIBS)  # a static library leaves cudart_static to its host
  string(APPEND dependencies "find_dependency(CUDAToolkit 13)\n")
endif()
file(WRITE ${PROJECT_BINARY_DIR}/mmengine-config.cmake
  "include(CMakeFindDependencyMacro)\n${dependencies}"
  "include(\${CMAKE_CURRENT_LIST_DIR}/mmengine-targets.cmake)\n")
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mmengine-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mmengine-config.cmake
  ${PROJECT_BINARY_DIR}/mmengine-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mmengine)
