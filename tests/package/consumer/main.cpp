// Loads the directory named first, feeds the token ids that follow and prints the ids it is given
// back, greedy, 12 of them. A failure prints its code and its sentence.
#include <mmengine/engine.h>
#include <mmengine/error.h>
#include <mmengine/types.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <utility>
#include <vector>

namespace {

void generate(const char* directory, std::vector<std::int32_t> prompt) {
  mmengine::EngineOptions options;
  options.device = "cpu";
  options.threads = 2;
  auto engine = mmengine::Engine::load(directory, options);

  mmengine::Request request;
  request.token_ids = std::move(prompt);
  request.sampling.max_tokens = 12;
  request.sampling.temperature = 0.0f;
  request.sampling.ignore_eos = true;
  const mmengine::RequestId id = engine.submit(std::move(request));
  bool finished = false;
  engine.run([&](const mmengine::StepOutput& output) {
    if (output.id != id) return;
    for (std::size_t i = 0; i < output.num_tokens; ++i) std::cout << output.token_ids[i] << '\n';
    finished = output.finish == mmengine::FinishReason::length;
  });
  std::cout << (finished ? "length" : "unfinished") << '\n'
            << engine.stats().kv_blocks_used << '\n';
  engine.close();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int32_t> prompt;
  for (int i = 2; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));
  try {
    generate(argc > 1 ? argv[1] : "", std::move(prompt));
  } catch (const mmengine::Error& error) {
    std::cerr << static_cast<int>(error.code()) << ' ' << error.what() << '\n';
    return 1;
  }
  return 0;
}
