// Runs operators on the emulated device, one for each request, until the standard input ends. A request: lines
// key=value, an empty line, then the raw input arrays that the header names, in the order of the calls below. Its
// answer on the standard output: one line of JSON, which tells how many bytes follow it, then the raw outputs.
//
// An array's value is its bytes, or bytes/room to lay it at the end of an array of `room` bytes, which takes no memory
// where it is not touched. `offset` elements lie before every array, for addresses off the alignment. None lie behind.
#include <cuda_runtime.h>
#include <operators.h>
#include <sys/mman.h>

#include <iostream>
#include <map>

namespace {

using emulator::machine;

constexpr size_t alignment = 256;  // of what cudaMalloc returns

struct Array {
  unsigned char* data;
  size_t bytes, room;
};

struct Mapping {
  void* memory;
  size_t bytes;  // 0 of what is freed rather than unmapped
};

std::map<std::string, std::string> header;
std::vector<Array> outputs;
std::vector<Mapping> mappings;

bool has(const std::string& key) { return header.count(key); }

double number(const std::string& key) { return has(key) ? std::stod(header.at(key)) : 0; }

int64_t integer(const std::string& key) { return has(key) ? std::stoll(header.at(key)) : 0; }

size_t element_size(const std::string& key) {
  const auto dtype = ops::DType(integer("dtype"));
  const bool image = key == "x" || key == "dy" || key == "v" || key == "out" || key == "out_x" || key == "y";
  if (dtype == ops::DType::float64) return 8;
  return image && dtype != ops::DType::float32 ? 2 : 4;
}

Array allocate(const std::string& key, bool writable, bool broadcast) {
  const std::string& sizes = header.at(key);
  const size_t slash = sizes.find('/'), bytes = std::stoull(sizes);
  const size_t room = slash == std::string::npos ? bytes : std::stoull(sizes.substr(slash + 1));
  const size_t offset = integer("offset") * element_size(key);
  void* memory = nullptr;
  bool failed;
  if (slash == std::string::npos) {
    failed = posix_memalign(&memory, alignment, offset + room);
    if (!failed) std::memset(memory, 0xFF, offset + room);  // NaN, where nobody writes
  } else {
    memory = mmap(nullptr, offset + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    failed = memory == MAP_FAILED;
  }
  if (failed) {
    std::fprintf(stderr, "no memory for %zu bytes of %s\n", room, key.c_str());
    std::exit(1);
  }
  mappings.push_back({memory, slash == std::string::npos ? 0 : offset + room});
  unsigned char* data = static_cast<unsigned char*>(memory) + offset;
  emulator::add_array(key, data, room, writable, broadcast);
  return {data, bytes, room};
}

const void* input(const std::string& key, bool broadcast = false) {
  if (!has(key)) return nullptr;
  const Array array = allocate(key, false, broadcast);
  std::cin.read(reinterpret_cast<char*>(array.data) + (array.room - array.bytes), array.bytes);
  return array.data;
}

void* output(const std::string& key) {
  if (!has(key)) return nullptr;
  outputs.push_back(allocate(key, true, false));
  return outputs.back().data;
}

ops::Tail read_tail() {
  ops::Tail tail{};
  tail.order = integer("order");
  tail.dtype = ops::DType(integer("dtype"));
  tail.activation = ops::Activation(integer("activation"));
  tail.alpha = number("alpha");
  tail.gain = number("gain");
  tail.limit = number("limit");
  tail.n = integer("n");
  tail.c = integer("c");
  tail.p = integer("p");
  tail.channels_last = integer("channels_last");
  tail.x = input("x");
  tail.x_is_output = integer("x_is_output");
  tail.scale = input("scale", true);
  tail.noise = input("noise");
  tail.noise_stride = integer("noise_stride");
  tail.strength = input("strength", true);
  tail.bias = input("bias", true);
  tail.dy = input("dy");
  tail.v = input("v");
  tail.w = input("w", true);
  tail.out = output("out");
  tail.out_x = output("out_x");
  if (has("sums")) {
    header["sums"] = std::to_string(3 * ops::cuda::tail_chunks(tail) * tail.n * tail.c * element_size("sums"));
  }
  tail.sums = output("sums");
  return tail;
}

ops::Filter read_filter() {
  ops::Filter filter{};
  filter.dtype = ops::DType(integer("dtype"));
  filter.n = integer("n");
  filter.c = integer("c");
  filter.in_h = integer("in_h");
  filter.in_w = integer("in_w");
  filter.out_h = integer("out_h");
  filter.out_w = integer("out_w");
  filter.channels_last = integer("channels_last");
  filter.x = input("x");
  filter.f = input("f", true);
  filter.y = output("y");
  filter.filter_h = integer("filter_h");
  filter.filter_w = integer("filter_w");
  filter.up_x = integer("up_x");
  filter.up_y = integer("up_y");
  filter.down_x = integer("down_x");
  filter.down_y = integer("down_y");
  filter.pad_x = integer("pad_x");
  filter.pad_y = integer("pad_y");
  filter.flip = integer("flip");
  filter.gain = number("gain");
  return filter;
}

bool read_header() {
  header.clear();
  std::string line;
  while (std::getline(std::cin, line) && !line.empty()) {
    header[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  }
  return !header.empty();
}

void answer() {
  machine = emulator::Machine();
  machine.order = emulator::Order(integer("thread_order"));
  machine.random.seed(integer("seed"));
  if (has("first_block")) machine.first_block = integer("first_block");
  if (has("last_block")) machine.last_block = integer("last_block");
  if (has("block_stride")) machine.block_stride = integer("block_stride");

  const bool is_tail = header.at("operator") == "tail";
  const char* error = is_tail ? ops::cuda::launch_tail(read_tail(), nullptr)
                              : ops::cuda::launch_upfirdn2d(read_filter(), nullptr);
  size_t total = 0;
  for (const Array& array : outputs) total += array.bytes;
  std::printf("{\"bytes\": %zu, \"error\": \"%s\"", total, error ? error : "");
  for (const emulator::Region& r : machine.regions) {
    std::printf(", \"%s\": {\"sectors\": %lu, \"requests\": %lu, \"bytes\": %lu}", r.name.c_str(), r.sectors,
                r.requests, r.bytes);
  }
  std::printf("}\n");
  for (const Array& array : outputs) std::fwrite(array.data + (array.room - array.bytes), 1, array.bytes, stdout);
  std::fflush(stdout);
}

void release_arrays() {
  for (const Mapping& mapping : mappings) {
    if (mapping.bytes) munmap(mapping.memory, mapping.bytes);
    else std::free(mapping.memory);
  }
  mappings.clear();
  outputs.clear();
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  while (read_header()) {
    answer();
    release_arrays();
  }
}
