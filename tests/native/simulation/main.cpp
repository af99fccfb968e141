// The simulation as a program: `simulation FIRST COUNT [trace]` runs the workloads with these seeds
// and prints `seed step rule what` of every violation as soon as it is found, then what the
// workloads reached; `simulation rules` lists the rules. Exit code 1: something is broken.
#include <cstdlib>
#include <iostream>
#include <string>

#include "simulation/simulation.h"

int main(int argc, char** argv) {
  using namespace mmengine::simulation;
  if (argc == 2 && std::string(argv[1]) == "rules") {
    for (const Rule& rule : kRules) std::cout << rule.name << "\t" << rule.what << "\n";
    return 0;
  }
  if (argc < 3) {
    std::cerr << "usage: simulation FIRST COUNT [trace] | rules\n";
    return 64;
  }
  const std::uint64_t first = std::strtoull(argv[1], nullptr, 10);
  const int count = std::atoi(argv[2]);
  Statistics sum;
  bool broken = false;
  for (int i = 0; i < count; ++i) {
    const Outcome outcome = simulate(first + static_cast<std::uint64_t>(i), 1, argc > 3, 1);
    for (const std::string& line : outcome.trace) std::cout << line << "\n";
    for (const Violation& v : outcome.violations) {
      std::cout << v.seed << "\t" << v.step << "\t" << v.rule << "\t" << v.what << std::endl;
      broken = true;
    }
    sum += outcome.statistics;
  }
  for (const auto& [name, number] : sum.list()) std::cout << name << " " << number << "\n";
  return broken ? 1 : 0;
}
