// What a simulation tells: violations of rules, how often the interesting things happened, and,
// when asked for, a trace of every step. A rule is the number of an invariant or the name of a
// promise; kRules lists them all, so that a test can ask whether each is seen broken.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mmengine::simulation {

struct Rule {
  const char* name;
  const char* what;
};

constexpr Rule kRules[] = {
    {"1", "free + cached + used = total; used are the blocks that sequences hold; none when idle"},
    {"2", "a block is written only if one sequence holds it and it is not full already"},
    {"3", "a row writes and reads blocks that its sequence holds, never the scrap block"},
    {"4", "positions [0, computed) of a running sequence hold the KV of its tokens"},
    {"6", "a hit has the sequence's own tokens and salt, in full blocks, never all of them"},
    {"7", "spans start at computed; computed <= known tokens <= max_context"},
    {"8", "a sequence has at most one span in a step"},
    {"9", "what is finished or waits has no span, gets no token and holds nothing"},
    {"10", "the logits rows of a sequence are a suffix of its rows, those that were asked for"},
    {"11", "text = solo text, greedy and sampled, with the same reason to end"},
    {"12", "a draw depends on the seed of the sequence and the position alone"},
    {"13", "counts are those of the tokens; slots hold what was computed and comes next"},
    {"14", "a row is masked by the rules at its place in the answer"},
    {"16", "two runs do the same"},
    {"20", "rules that fail end their request, with their error"},
    {"admission", "who waits is admitted as soon as there is a slot, prompt rows and blocks"},
    {"cached_tokens", "the tokens told as cached are those that were not computed"},
    {"cancel", "a cancelled request gives all back at once and yields nothing more"},
    {"children",
     "same_prompt_as: begins after that prompt is computed, with all of it that is common"},
    {"copies", "a copied block is its new holder's alone, its source is held, none is both"},
    {"core", "no internal check of the core fails"},
    {"counts", "running and waiting requests are told as they are"},
    {"fairness", "first come, first served; the youngest gives way; nobody waits for ever"},
    {"fed", "the id of a row is the token of its position"},
    {"limits", "rows, sequences and logits rows of a step stay within its limits"},
    {"lists", "parameters, bias and bans of a row are those of the request"},
    {"reuse",
     "a full block is found until a block is evicted, then once its sequence fills another"},
    {"rows", "wanted prompt rows are delivered once, in order and completely"},
    {"slots", "every running sequence has a slot of its own"},
    {"turns", "each step has a row of every sequence that generates"},
};

struct Violation {
  std::uint64_t seed = 0;
  int step = 0;
  std::string rule, what;
};

struct Statistics {  // how often the interesting things happened
  std::int64_t workloads = 0, steps = 0, rows = 0, requests = 0, preemptions = 0, cancelled = 0;
  std::int64_t hits = 0, evictions = 0, forks = 0, copies = 0, delivered_rows = 0;
  std::int64_t masked = 0, forced = 0, errors = 0, pinned = 0;

  std::vector<std::pair<const char*, std::int64_t>> list() const {
    return {{"workloads", workloads},
            {"steps", steps},
            {"rows", rows},
            {"requests", requests},
            {"preemptions", preemptions},
            {"cancelled", cancelled},
            {"hits", hits},
            {"evictions", evictions},
            {"forks", forks},
            {"copies", copies},
            {"delivered_rows", delivered_rows},
            {"masked", masked},
            {"forced", forced},
            {"errors", errors},
            {"pinned", pinned}};
  }
  Statistics& operator+=(const Statistics& other) {
    workloads += other.workloads;
    steps += other.steps;
    rows += other.rows;
    requests += other.requests;
    preemptions += other.preemptions;
    cancelled += other.cancelled;
    hits += other.hits;
    evictions += other.evictions;
    forks += other.forks;
    copies += other.copies;
    masked += other.masked;
    forced += other.forced;
    errors += other.errors;
    pinned += other.pinned;
    delivered_rows += other.delivered_rows;
    return *this;
  }
};

// Collects what one workload tells.
class Report {
 public:
  Report(std::uint64_t seed, bool tracing) : seed_(seed), tracing_(tracing) {}

  template <class... Args>
  void violation(std::string_view rule, const Args&... what) {
    std::ostringstream text;
    (text << ... << what);
    trace("VIOLATION of ", rule, ": ", text.str());
    if (violations.size() < 20) violations.push_back({seed_, step, std::string(rule), text.str()});
  }
  template <class... Args>
  void expect(bool holds, std::string_view rule, const Args&... what) {
    if (!holds) violation(rule, what...);
  }
  template <class... Args>
  void trace(const Args&... what) {
    if (!tracing_) return;
    std::ostringstream line;
    line << "step " << step << ": ";
    (line << ... << what);
    lines.push_back(line.str());
  }
  bool tracing() const { return tracing_; }

  int step = 0;
  std::vector<Violation> violations;
  std::vector<std::string> lines;  // of the trace
  Statistics statistics;

 private:
  std::uint64_t seed_;
  bool tracing_;
};

}  // namespace mmengine::simulation
