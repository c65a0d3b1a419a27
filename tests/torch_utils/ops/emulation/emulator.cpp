// Built without sanitizers, for speed; it tells AddressSanitizer of fibers and poison where the program has it.
#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* begin, size_t bytes);
}

namespace emulator {
namespace {

constexpr size_t sector_bytes = 32;
constexpr size_t stack_bytes = 64 << 10;

struct Access {
  uint64_t group;  // warp, place in the code and how often the lane was there: lanes that share it form a request
  uint64_t sector;
  uint32_t region;
  uint32_t bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  void* fake_stack = nullptr;
};

enum class State { ready, barrier, shuffle, finished };

struct Thread {
  unsigned number;
  State state;
  Fiber* fiber;  // null before the thread starts and after it ends
  const char* file;
  int line;
  unsigned mask, source;         // of a shuffle
  uint64_t value;                // what this lane gives, then what it gets
  std::vector<uint32_t> visits;  // of each place in the code that accesses an array
};

std::vector<Thread> threads;
std::vector<Thread*> turns;  // the threads that run one after the other until they wait or end
size_t turn;
Thread* current;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
ucontext_t scheduler;  // with the stack that it runs on
void* scheduler_fake_stack;
const void* scheduler_bottom;
size_t scheduler_size;
std::unordered_map<const void*, uint64_t> places;
std::vector<Access> accesses;

[[noreturn]] void fail(const std::string& what) {
  const Index b = machine.block_index;
  std::fprintf(stderr, "emulator: block (%u, %u, %u): %s\n", b.x, b.y, b.z, what.c_str());
  std::abort();
}

void poison(const void* begin, size_t bytes, bool on) {
  if (!__asan_poison_memory_region) return;
  (on ? __asan_poison_memory_region : __asan_unpoison_memory_region)(begin, bytes);
}

void poison_arrays(bool on) {
  constexpr size_t sparse = 1 << 30;  // of such an array the shadow memory would not be sparse
  for (const Region& r : machine.regions) {
    if (r.end - r.begin < sparse) poison(reinterpret_cast<const void*>(r.begin), r.end - r.begin, on);
  }
}

template <typename T>
void arrange(std::vector<T>& items) {
  if (machine.order == Order::reversed) std::reverse(items.begin(), items.end());
  if (machine.order == Order::shuffled) std::shuffle(items.begin(), items.end(), machine.random);
}

// ---- Fibers

void enter(Thread* thread, Fiber* fiber) {
  const Index block = machine.launch.block;
  thread->fiber = fiber;
  current = thread;
  const unsigned i = thread->number;
  machine.thread_index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
}

void switch_to(Fiber* fiber) {
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber->stack.get(), stack_bytes);
  }
  swapcontext(&scheduler, &fiber->context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

void leave(Fiber* fiber) {
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&fiber->fake_stack, scheduler_bottom, scheduler_size);
  }
  swapcontext(&fiber->context, &scheduler);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fiber->fake_stack, nullptr, nullptr);
}

// A fiber's life: one thread after the other. It goes on with the next itself where that one has yet to start.
void serve() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
  for (;;) {
    machine.launch.kernel();
    current->state = State::finished;
    Fiber* fiber = current->fiber;
    current->fiber = nullptr;
    if (turn + 1 < turns.size() && !turns[turn + 1]->fiber) {
      enter(turns[++turn], fiber);
    } else {
      leave(fiber);
    }
  }
}

Fiber* idle_fiber() {
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber* fiber = fibers.back().get();
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = stack_bytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, serve, 0);
    idle.push_back(fiber);
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

void run_ready_threads() {
  turns.clear();
  for (Thread& thread : threads) {
    if (thread.state == State::ready) turns.push_back(&thread);
  }
  arrange(turns);
  for (turn = 0; turn < turns.size(); ++turn) {
    Fiber* fiber = turns[turn]->fiber ? turns[turn]->fiber : idle_fiber();
    enter(turns[turn], fiber);
    switch_to(fiber);
    if (current->state == State::finished) idle.push_back(fiber);
  }
}

// ---- Barriers and shuffles

void wait(State state, const char* file, int line) {
  current->state = state;
  current->file = file;
  current->line = line;
  leave(current->fiber);
}

bool together(const Thread& a, const Thread& b) {
  if (a.state != b.state) return false;
  return a.state == State::finished || (a.line == b.line && !std::strcmp(a.file, b.file));
}

[[noreturn]] void fail_divergence() {
  std::string text = "not all threads reach the same barrier or shuffle:";
  for (size_t i = 0, j; i < threads.size(); i = j) {
    const Thread& t = threads[i];
    for (j = i + 1; j < threads.size() && together(threads[j], t);) ++j;
    text += "\n  threads " + std::to_string(i) + " to " + std::to_string(j - 1);
    if (t.state == State::finished) {
      text += " have finished";
    } else {
      text += t.state == State::barrier ? " wait at the barrier in " : " wait at the shuffle in ";
      text += std::string(t.file) + ":" + std::to_string(t.line);
    }
  }
  fail(text);
}

bool release_shuffles(unsigned first) {
  bool any = false;
  for (unsigned i = first; i < first + warp_size && i < threads.size(); ++i) {
    if (threads[i].state != State::shuffle) continue;
    const unsigned mask = threads[i].mask;
    Thread* group[warp_size] = {};
    uint64_t given[warp_size] = {};
    bool complete = true;
    for (unsigned lane = 0; lane < warp_size && complete; ++lane) {
      if (!(mask >> lane & 1)) continue;
      if (first + lane >= threads.size()) fail_divergence();
      group[lane] = &threads[first + lane];
      given[lane] = group[lane]->value;
      complete = together(*group[lane], threads[i]) && group[lane]->mask == mask;
    }
    if (!complete) continue;
    for (Thread* thread : group) {
      if (!thread) continue;
      if (!(mask >> thread->source & 1)) fail("a shuffle reads a lane that its mask leaves out");
      thread->value = given[thread->source];
      thread->state = State::ready;
    }
    any = true;
  }
  return any;
}

// Lets threads go on whose barrier or shuffle is complete. False at the end of the block.
bool release() {
  bool any = false;
  for (unsigned first = 0; first < threads.size(); first += warp_size) any |= release_shuffles(first);
  if (any) return true;
  for (const Thread& thread : threads) {
    if (!together(thread, threads[0]) || thread.state == State::shuffle) fail_divergence();
  }
  if (threads[0].state == State::finished) return false;
  for (Thread& thread : threads) thread.state = State::ready;
  return true;
}

// ---- Traffic

std::string nearest_array(uintptr_t address) {
  for (const Region& r : machine.regions) {
    if (address + 4096 > r.begin && address < r.end + 4096) {
      return ", at byte " + std::to_string(int64_t(address - r.begin)) + " of " + r.name + ", which has " +
             std::to_string(r.end - r.begin);
    }
  }
  return "";
}

void count_traffic() {
  std::sort(accesses.begin(), accesses.end(), [](const Access& a, const Access& b) {
    return a.group != b.group ? a.group < b.group : a.sector < b.sector;
  });
  std::vector<std::pair<uint32_t, uint64_t>> broadcast;
  const Access* last = nullptr;
  for (const Access& access : accesses) {
    Region& region = machine.regions[access.region];
    const bool new_request = !last || last->group != access.group;
    region.bytes += access.bytes;
    region.requests += new_request;
    if (region.broadcast) {
      broadcast.emplace_back(access.region, access.sector);
    } else {
      region.sectors += new_request || last->sector != access.sector;
    }
    last = &access;
  }
  std::sort(broadcast.begin(), broadcast.end());
  const auto end = std::unique(broadcast.begin(), broadcast.end());
  for (auto b = broadcast.begin(); b != end; ++b) ++machine.regions[b->first].sectors;
  accesses.clear();
}

void run_block(Index block) {
  const Launch& launch = machine.launch;
  machine.block_index = block;
  std::memset(launch.memory, 0xFF, launch.shared);
  poison(launch.memory + launch.shared, shared_bytes - launch.shared, true);
  threads.resize(launch.block.x * launch.block.y * launch.block.z);
  for (unsigned i = 0; i < threads.size(); ++i) {
    threads[i].number = i;
    threads[i].state = State::ready;
    threads[i].fiber = nullptr;
    threads[i].visits.clear();
  }
  do {
    run_ready_threads();
  } while (release());
  poison(launch.memory, shared_bytes, false);
  count_traffic();
}

}  // namespace

void add_array(const std::string& name, const void* data, size_t bytes, bool writable, bool broadcast) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  machine.regions.push_back({name, begin, begin + bytes, writable, broadcast, 0, 0, 0});
}

void run(const Launch& launch) {
  machine.launch = launch;
  places.clear();
  const int64_t width = launch.grid.x, height = launch.grid.y, blocks = width * height * launch.grid.z;
  const int64_t first = machine.first_block < 0 ? blocks + machine.first_block : machine.first_block;
  const int64_t last = machine.last_block < 0 ? blocks + machine.last_block : machine.last_block;
  std::vector<int64_t> numbers;
  for (int64_t b = std::max<int64_t>(first, 0); b <= last && b < blocks; b += machine.block_stride) {
    numbers.push_back(b);
  }
  arrange(numbers);
  poison_arrays(true);
  for (int64_t b : numbers) {
    run_block({unsigned(b % width), unsigned(b / width % height), unsigned(b / width / height)});
  }
  poison_arrays(false);
}

unsigned lane() { return current->number % warp_size; }

void barrier(const char* file, int line) { wait(State::barrier, file, line); }

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, const char* file, int line) {
  if (!(mask >> lane() & 1)) fail("a lane calls a shuffle whose mask leaves it out");
  current->mask = mask;
  current->source = source_lane;
  current->value = value;
  wait(State::shuffle, file, line);
  return current->value;
}

void note(const void* pointer, size_t bytes, bool write, const void* place) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto refuse = [&](const std::string& why) {
    fail("thread " + std::to_string(current->number) + (write ? " writes " : " reads ") + std::to_string(bytes) +
         " bytes " + why);
  };
  if (address % bytes) refuse("at a misaligned address");
  const auto holds = [&](const Region& r) { return r.begin <= address && address + bytes <= r.end; };
  const auto region = std::find_if(machine.regions.begin(), machine.regions.end(), holds);
  if (region == machine.regions.end()) refuse("outside of all arrays" + nearest_array(address));
  if (write && !region->writable) refuse("to the input " + region->name);
  const uint64_t number = places.try_emplace(place, places.size()).first->second;
  if (current->visits.size() <= number) current->visits.resize(number + 1);
  const uint64_t group = uint64_t(current->number / warp_size) << 58 | number << 40 | current->visits[number]++;
  const uint32_t index = region - machine.regions.begin();
  accesses.push_back({group, address / sector_bytes, index, uint32_t(bytes)});
}

}  // namespace emulator
