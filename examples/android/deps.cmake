# The libraries that drllm needs, as static libraries: pthreadpool, cpuinfo, utf8proc. The versions are those of
# tools/setup/deps.sh; a commit is its own checksum.
include(FetchContent)

function(drllm_source name repository commit)
    if(DRLLM_DEPS_SOURCES)
        if(NOT EXISTS ${DRLLM_DEPS_SOURCES}/${name})
            message(FATAL_ERROR "There is no ${name} in ${DRLLM_DEPS_SOURCES}; run tools/setup/deps.sh --sources FOLDER")
        endif()
        set(${name}_source ${DRLLM_DEPS_SOURCES}/${name} PARENT_SCOPE)
        return()
    endif()
    FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${commit})
    FetchContent_GetProperties(${name})
    if(NOT ${name}_POPULATED)
        FetchContent_Populate(${name})
    endif()
    set(${name}_source ${${name}_SOURCE_DIR} PARENT_SCOPE)
endfunction()

drllm_source(fxdiv https://github.com/Maratyszcza/FXdiv.git b408327ac2a15ec3e43352421954f5b1967701d1)
drllm_source(pthreadpool https://github.com/Maratyszcza/pthreadpool.git 560c60d342a76076f0557a3946924c6478470044)
drllm_source(cpuinfo https://github.com/pytorch/cpuinfo.git 877328f188a3c7d1fa855871a278eb48d530c4c0)
drllm_source(utf8proc https://github.com/JuliaStrings/utf8proc.git 1cb28a66ca79a0845e99433fd1056257456cef8b)

# Workers spin 50,000 times instead of a million before they sleep: a phone's other programs want the cores, too, and its battery
# lasts. A constant of the source, with no option.
set(spin ${pthreadpool_source}/src/threadpool-common.h)
file(READ ${spin} text)
string(REGEX REPLACE "(define PTHREADPOOL_SPIN_WAIT_ITERATIONS) [0-9]+" "\\1 50000" patched "${text}")
if(NOT patched MATCHES "define PTHREADPOOL_SPIN_WAIT_ITERATIONS 50000\n")
    message(FATAL_ERROR "pthreadpool's spin count is not where it was")
endif()
if(NOT patched STREQUAL text)
    file(WRITE ${spin} "${patched}")
endif()

# One header; its own CMake file would ask for a C++ compiler.
add_library(fxdiv INTERFACE)
target_include_directories(fxdiv SYSTEM INTERFACE ${fxdiv_source}/include)
set(FXDIV_SOURCE_DIR ${fxdiv_source} CACHE PATH "" FORCE)
set(PTHREADPOOL_LIBRARY_TYPE static CACHE STRING "" FORCE)
set(CPUINFO_LIBRARY_TYPE static CACHE STRING "" FORCE)
foreach(option PTHREADPOOL_BUILD_TESTS PTHREADPOOL_BUILD_BENCHMARKS
    CPUINFO_BUILD_TOOLS CPUINFO_BUILD_UNIT_TESTS CPUINFO_BUILD_MOCK_TESTS CPUINFO_BUILD_BENCHMARKS CPUINFO_BUILD_PKG_CONFIG)
    set(${option} OFF CACHE BOOL "" FORCE)
endforeach()
set(CMAKE_POLICY_VERSION_MINIMUM 3.5) # theirs ask for less than CMake 4 takes
add_subdirectory(${pthreadpool_source} pthreadpool EXCLUDE_FROM_ALL)
add_subdirectory(${cpuinfo_source} cpuinfo EXCLUDE_FROM_ALL)

add_library(utf8proc STATIC ${utf8proc_source}/utf8proc.c)
target_compile_definitions(utf8proc PUBLIC UTF8PROC_STATIC)
target_include_directories(utf8proc SYSTEM PUBLIC ${utf8proc_source})
