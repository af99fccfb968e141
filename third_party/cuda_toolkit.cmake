# A CUDA 13 compiler: what the caller names, else nvcc of the system, else of pip's nvidia-* wheels
# (nvidia-cuda-nvcc, -crt, -runtime, -cccl and nvidia-nvvm, all 13.0). Their tree lies otherwise
# than nvcc.profile says (no lib64), so nvcc runs from a tree of links in the build folder.

# mm_nvcc_version(VARIABLE NVCC): "13.0", or empty where that program is no nvcc.
function(mm_nvcc_version variable nvcc)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE failed)
  set(version "")
  if(NOT failed AND text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(version ${CMAKE_MATCH_1})
  endif()
  set(${variable} "${version}" PARENT_SCOPE)
endfunction()

# mm_wheel_nvcc(VARIABLE): the nvcc that pip installed for the Python of this build, or empty.
# sysconfig's folder counts, too: an isolated build of pip hides it from imports.
function(mm_wheel_nvcc variable)
  set(${variable} "" PARENT_SCOPE)
  find_package(Python QUIET COMPONENTS Interpreter)
  if(Python_Interpreter_FOUND)
    execute_process(COMMAND ${Python_EXECUTABLE} -c "
import pathlib, sys, sysconfig
for folder in [*sys.path, sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]:
    toolkit = pathlib.Path(folder or '.', 'nvidia', 'cu13').absolute()
    if all((toolkit / part).exists() for part in ('bin/nvcc', 'include/cuda_runtime.h', 'nvvm')):
        print(toolkit / 'bin' / 'nvcc')
        break
" OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    set(${variable} "${found}" PARENT_SCOPE)
  endif()
endfunction()

# mm_shim(VARIABLE NVCC): NVCC itself, or that of a tree where all lies as its nvcc.profile says.
# Libraries there also have their names without a version, by which linkers look for them.
function(mm_shim variable nvcc)
  get_filename_component(toolkit ${nvcc} REALPATH)
  get_filename_component(toolkit ${toolkit}/../.. ABSOLUTE)
  if(EXISTS ${toolkit}/lib64 OR NOT EXISTS ${toolkit}/lib OR NOT EXISTS ${toolkit}/nvvm)
    set(${variable} ${nvcc} PARENT_SCOPE)
    return()
  endif()
  set(shim ${PROJECT_BINARY_DIR}/cuda-toolkit)
  set(known "")
  if(EXISTS ${shim}/from)
    file(READ ${shim}/from known)
  endif()
  if(NOT known STREQUAL toolkit)
    file(REMOVE_RECURSE ${shim})
    file(MAKE_DIRECTORY ${shim}/lib64 ${shim}/bin)
    file(GLOB programs ${toolkit}/bin/*)
    foreach(program IN LISTS programs)
      get_filename_component(name ${program} NAME)
      if(name MATCHES "^nvcc")  # which looks for all else from the folder it really lies in
        file(COPY ${program} DESTINATION ${shim}/bin)
      else()
        file(CREATE_LINK ${program} ${shim}/bin/${name} SYMBOLIC)
      endif()
    endforeach()
    file(CREATE_LINK ${toolkit}/include ${shim}/include SYMBOLIC)
    file(CREATE_LINK ${toolkit}/nvvm ${shim}/nvvm SYMBOLIC)
    file(GLOB libraries ${toolkit}/lib/*.a ${toolkit}/lib/*.so*)
    foreach(library IN LISTS libraries)
      get_filename_component(name ${library} NAME)
      file(CREATE_LINK ${library} ${shim}/lib64/${name} SYMBOLIC)
      if(name MATCHES "^(.*\\.so)\\.[0-9.]+$")
        file(CREATE_LINK ${library} ${shim}/lib64/${CMAKE_MATCH_1} SYMBOLIC)
      endif()
    endforeach()
    file(WRITE ${shim}/from "${toolkit}")
  endif()
  set(${variable} ${shim}/bin/nvcc PARENT_SCOPE)
endfunction()

# mm_find_nvcc(VARIABLE WHY): path of an nvcc 13, or empty, and then WHY says what was looked at.
function(mm_find_nvcc variable why)
  set(${variable} "" PARENT_SCOPE)
  set(other "")
  if(CMAKE_CUDA_COMPILER)
    set(candidates ${CMAKE_CUDA_COMPILER})
  elseif(DEFINED ENV{CUDACXX})
    set(candidates $ENV{CUDACXX})
  else()
    find_program(MM_NVCC nvcc PATHS /usr/local/cuda/bin)
    mark_as_advanced(MM_NVCC)
    set(candidates)
    if(MM_NVCC)
      list(APPEND candidates ${MM_NVCC})
    endif()
    mm_wheel_nvcc(wheel)
    list(APPEND candidates ${wheel})
  endif()
  foreach(candidate IN LISTS candidates)
    mm_nvcc_version(version ${candidate})
    if(version MATCHES "^13\\.")
      mm_shim(nvcc ${candidate})
      set(${variable} ${nvcc} PARENT_SCOPE)
      return()
    endif()
    string(APPEND other ", ${candidate} is release '${version}'")
  endforeach()
  set(${why} "no nvcc of CUDA 13 in PATH, /usr/local/cuda or pip's nvidia-cuda-nvcc${other}"
    PARENT_SCOPE)
endfunction()
