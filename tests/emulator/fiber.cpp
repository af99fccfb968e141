#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <utility>

#include "base/check.h"

namespace mmengine::emulator {

// The page below the stack cannot be touched, so that a stack too deep ends the process at once.
Fiber::Fiber() {
  constexpr std::size_t kPage = 4096;
  stack_ = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
  MM_CHECK(stack_ != MAP_FAILED, "emulator", "expected memory for a stack, got none");
  mprotect(stack_, kPage, PROT_NONE);
  getcontext(&context_);
  context_.uc_stack.ss_sp = static_cast<std::byte*>(stack_) + kPage;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2,
              static_cast<unsigned>(self), static_cast<unsigned>(self >> 32));
}

Fiber::~Fiber() { munmap(stack_, kStackBytes + 4096); }

void Fiber::start(const std::function<void()>& body) {
  body_ = &body;
  finished_ = false;
}

// makecontext passes ints only.
void Fiber::enter(unsigned low, unsigned high) {
  reinterpret_cast<Fiber*>(std::uintptr_t{high} << 32 | low)->run();
}

void Fiber::run() {
  for (;;) {
    try {
      (*body_)();
    } catch (...) {
      error_ = std::current_exception();
    }
    finished_ = true;
    leave();
  }
}

// _setjmp, unlike swapcontext, makes no system call.
void Fiber::resume() {
  if (_setjmp(caller_) == 0) {
    if (entered_) _longjmp(own_, 1);
    entered_ = true;
    setcontext(&context_);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Fiber::leave() {
  if (_setjmp(own_) == 0) _longjmp(caller_, 1);
}

void Fiber::give_way() { leave(); }

}  // namespace mmengine::emulator
