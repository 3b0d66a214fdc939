// run_if_supported ISA PROGRAM: runs the program, or returns 77 (skipped) where this machine lacks the instruction set.
#include <unistd.h>

#include <cstdio>

#include "awp/cpu.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  for (const std::string& isa : awp::supported_isas())
    if (isa == argv[1]) {
      execl(argv[2], argv[2], static_cast<char*>(nullptr));
      std::perror(argv[2]);
      return 1;
    }
  std::printf("%s: not on this machine\n", argv[1]);
  return 77;
}
