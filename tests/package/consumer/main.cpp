// Loads the directory named first, feeds the token ids that follow and prints the ids it is given
// back, greedy, 12 of them; then 12 that are even. A failure prints its code and its sentence.
#include <mmengine/engine.h>
#include <mmengine/error.h>
#include <mmengine/types.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

namespace {

// Even tokens only. A real one, a grammar, keeps the state that accept moves on.
class Even : public mmengine::TokenConstraint {
 public:
  void mask(std::uint32_t* bits, std::size_t num_words) override {
    std::fill_n(bits, num_words, 0x55555555u);
  }
  bool accept(std::int32_t token) override { return token % 2 == 0; }
  void rollback(int) override {}
  std::unique_ptr<TokenConstraint> clone() const override { return std::make_unique<Even>(); }
};

void answer(mmengine::Engine& engine, std::vector<std::int32_t> prompt,
            std::unique_ptr<mmengine::TokenConstraint> constraint) {
  mmengine::Request request;
  request.token_ids = std::move(prompt);
  request.constraint = std::move(constraint);
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
}

void generate(const char* directory, const std::vector<std::int32_t>& prompt) {
  mmengine::EngineOptions options;
  options.device = "cpu";
  options.threads = 2;
  auto engine = mmengine::Engine::load(directory, options);
  answer(engine, prompt, nullptr);
  answer(engine, prompt, std::make_unique<Even>());
  engine.close();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::int32_t> prompt;
  for (int i = 2; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));
  try {
    generate(argc > 1 ? argv[1] : "", prompt);
  } catch (const mmengine::Error& error) {
    std::cerr << static_cast<int>(error.code()) << ' ' << error.what() << '\n';
    return 1;
  }
  return 0;
}
