#include "qat/checkpoint/safetensors.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "qat/checkpoint/pending.h"

namespace qat {
namespace {

using nlohmann::json;

// What the reference implementation refuses to exceed.
constexpr uint64_t kLongestHeader = 100'000'000;

const std::vector<std::pair<std::string, at::ScalarType>> kDtypes{{"F64", at::kDouble},
                                                                  {"F32", at::kFloat},
                                                                  {"F16", at::kHalf},
                                                                  {"BF16", at::kBFloat16},
                                                                  {"I64", at::kLong},
                                                                  {"I32", at::kInt},
                                                                  {"U32", at::kUInt32},
                                                                  {"I16", at::kShort},
                                                                  {"I8", at::kChar},
                                                                  {"U8", at::kByte},
                                                                  {"BOOL", at::kBool},
                                                                  {"F8_E4M3", at::kFloat8_e4m3fn},
                                                                  {"F8_E5M2", at::kFloat8_e5m2}};

std::string name_of_dtype(const std::string& tensor, at::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes)
    if (known == dtype) return name;
  throw FileError("safetensors cannot hold the dtype of " + tensor + ", " +
                  std::string(c10::toString(dtype)) + ".");
}

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

struct Header {
  std::vector<Entry> entries;  // in the order of their bytes
  uint64_t data_at;
};

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw FileError(path + " must be a safetensors file, but " + why + ".");
}

Entry parse_entry(const std::string& path, const std::string& name, const json& value) {
  const auto broken = [&] { refuse(path, "its header does not describe " + name + " properly"); };
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets") || !value["dtype"].is_string() ||
      !value["shape"].is_array() || !value["data_offsets"].is_array() ||
      value["data_offsets"].size() != 2)
    broken();
  Entry entry{name, at::kFloat, {}, 0, 0};
  bool known = false;
  for (const auto& [text, dtype] : kDtypes)
    if (value["dtype"] == text) entry.dtype = dtype, known = true;
  if (!known) refuse(path, "the dtype of " + name + " is " + value["dtype"].get<std::string>());
  unsigned __int128 bytes = c10::elementSize(entry.dtype);
  unsigned __int128 strides = 1;  // an empty tensor has them, too
  for (const json& side : value["shape"]) {
    if (!side.is_number_unsigned() || side.get<uint64_t>() > (uint64_t{1} << 48)) broken();
    entry.shape.push_back(side.get<int64_t>());
    bytes *= side.get<uint64_t>();
    strides *= std::max<uint64_t>(side.get<uint64_t>(), 1);
    if (bytes > (uint64_t{1} << 62) || strides > (uint64_t{1} << 62)) broken();
  }
  for (const json& offset : value["data_offsets"])
    if (!offset.is_number_unsigned()) broken();
  entry.begin = value["data_offsets"][0].get<uint64_t>();
  entry.end = value["data_offsets"][1].get<uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != bytes)
    refuse(path, "the bytes of " + name + " do not match its shape");
  return entry;
}

Header parse_header(const std::string& path, std::ifstream& in) {
  if (!in) throw FileError(path + " must be a readable safetensors file, but cannot be opened.");
  in.seekg(0, std::ios::end);
  const uint64_t size = static_cast<uint64_t>(in.tellg());
  in.seekg(0);
  uint64_t length = 0;
  if (size < 8 || !in.read(reinterpret_cast<char*>(&length), 8))
    refuse(path, "it has " + std::to_string(size) + " bytes, fewer than the 8 of a header length");
  if (length > kLongestHeader || length > size - 8)
    refuse(path, "its header claims " + std::to_string(length) + " bytes of the " +
                     std::to_string(size - 8) + " that follow");
  std::string text(length, '\0');
  in.read(text.data(), static_cast<std::streamsize>(length));
  const json header = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) refuse(path, "its header is not JSON");
  Header result{{}, 8 + length};
  for (const auto& [name, value] : header.items())
    if (name != "__metadata__") result.entries.push_back(parse_entry(path, name, value));
  std::sort(result.entries.begin(), result.entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t next = 0;
  for (const Entry& entry : result.entries) {
    if (entry.begin != next) refuse(path, "the bytes of " + entry.name + " overlap or leave a gap");
    next = entry.end;
  }
  if (next != size - result.data_at)
    refuse(path, "its tensors take " + std::to_string(next) + " bytes and " +
                     std::to_string(size - result.data_at) + " follow the header");
  return result;
}

}  // namespace

void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                      const Metadata& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  std::vector<at::Tensor> ordered;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", name_of_dtype(name, tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
    ordered.push_back(tensor.detach());
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // tensors begin aligned
  const uint64_t length = text.size();
  detail::PendingFile file(path);
  file.write(&length, sizeof(length));
  file.write(text.data(), text.size());
  for (const at::Tensor& tensor : ordered) {
    const at::Tensor bytes = tensor.cpu().contiguous();
    file.write(bytes.const_data_ptr(), bytes.nbytes());
  }
  file.commit();
}

struct SafetensorsReader::Content {
  explicit Content(const std::filesystem::path& file)
      : path(file.string()), in(file, std::ios::binary), header(parse_header(path, in)) {}

  const Entry& entry(const std::string& name) const {
    for (const Entry& one : header.entries)
      if (one.name == name) return one;
    throw FileError(path + " must hold " + name + ", but does not.");
  }

  std::string path;
  std::ifstream in;
  Header header;
};

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path)
    : content_(std::make_unique<Content>(path)) {}

SafetensorsReader::~SafetensorsReader() = default;

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> names;
  for (const Entry& entry : content_->header.entries) names.push_back(entry.name);
  return names;
}

at::Tensor SafetensorsReader::read(const std::string& name) {
  const Entry& entry = content_->entry(name);
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
  std::ifstream& in = content_->in;
  in.clear();
  in.seekg(static_cast<std::streamoff>(content_->header.data_at + entry.begin));
  in.read(static_cast<char*>(tensor.mutable_data_ptr()),
          static_cast<std::streamsize>(entry.end - entry.begin));
  if (!in) refuse(content_->path, "it ended while " + name + " was read");
  return tensor;
}

std::vector<int64_t> SafetensorsReader::shape_of(const std::string& name) const {
  return content_->entry(name).shape;
}

NamedTensors load_safetensors(const std::filesystem::path& path) {
  SafetensorsReader reader(path);
  NamedTensors tensors;
  for (const std::string& name : reader.names()) tensors.emplace(name, reader.read(name));
  return tensors;
}

void check_safetensors(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  parse_header(path.string(), in);
}

}  // namespace qat
