// See dataset.h. Finding, opening and checking the files of a dataset; its tokens are in
// tokens.cpp.
#include "data/dataset.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>

#include "data/tokenizer.h"
#include "model/base/check.h"

namespace duet {
namespace fs = std::filesystem;
namespace {

static_assert(
    std::endian::native == std::endian::little, "shards are little-endian and read in place");

constexpr const char* kAllowed =
    " (allowed: a text file, a folder, a .bin token shard, or nothing for the embedded text)";
constexpr int64_t kHeader = 256 * sizeof(int32_t);  // bytes
constexpr int64_t kProbe = 8192;                    // bytes in which a zero byte means: not text

struct Format {
  const char* name;
  int32_t magic, version;
  int width;
  int64_t vocab_size;
};
constexpr Format kFormats[] = {
    {"GPT-2", 20240520, 1, 2, 50257}, {"Llama 3", 20240801, 7, 4, 128256}};

// The whole file as bytes; count 0 where it is empty.
TokenPart open_part(const std::string& path) {
  const auto file = std::make_shared<const OpenFile>(path, kAllowed);
  return {.name = path, .file = file, .count = file->size()};
}

bool is_text(const TokenPart& part) {
  const std::string start = part.file->read(0, std::min(part.count, kProbe));
  return !start.empty() && start.find('\0') == std::string::npos;
}

TokenPart load_text(const std::string& path) {
  TokenPart file = open_part(path);
  require(file.count > 0, path, ": the file is empty", kAllowed);
  require(is_text(file), path, ": not a text file: found a zero byte in its first ", kProbe,
      " bytes", kAllowed);
  return file;
}

const Format& format_of(const std::string& path, int32_t magic, int32_t version) {
  for (const Format& f : kFormats) {
    if (f.magic != magic) continue;
    require(f.version == version, path, ": a ", f.name, " token shard of unknown version ", version,
        ", expected ", f.version);
    return f;
  }
  throw UsageError(cat(path, ": not a token shard: found magic ", magic, ", expected ",
      kFormats[0].magic, " or ", kFormats[1].magic));
}

TokenPart load_shard(const std::string& path, Dataset& dataset) {
  TokenPart shard = open_part(path);
  require(shard.count >= kHeader, path, ": truncated: found ", shard.count,
      " bytes, a token shard starts with ", kHeader);
  int32_t header[3];
  shard.file->read(0, sizeof header, header);
  const Format& format = format_of(path, header[0], header[1]);
  require(dataset.vocab_size == kBytes || dataset.vocab_size == format.vocab_size, path, ": a ",
      format.name,
      " token shard among shards of another vocabulary, expected one kind in a folder");
  dataset.vocab_size = format.vocab_size;

  const int64_t count = header[2], expected = kHeader + count * format.width;
  require(count > 0, path, ": the token shard is empty: its header announces ", count, " tokens");
  require(shard.count == expected, path, shard.count < expected ? ": truncated" : ": too long",
      ": its header says ", count, " tokens, that is ", expected, " bytes, found ", shard.count);
  shard.begin = kHeader;
  shard.width = format.width;
  shard.count = count;
  return shard;
}

bool is_shard_name(const fs::path& path) { return path.extension() == ".bin"; }

// Whether `val` is one of the words of a shard's name: fineweb_val_000000.bin,
// tiny_shakespeare_val.bin.
bool is_val_name(const fs::path& path) {
  return cat("_", path.stem().string(), "_").find("_val_") != std::string::npos;
}

// The .bin files that lie directly in a folder, sorted by name; llm.c's tokenizer file is noted and
// left out.
std::vector<std::string> list_shards(const fs::path& folder, Dataset& dataset) {
  std::vector<std::string> shards;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!is_shard_name(entry.path()) || entry.is_directory()) continue;
    const std::string path = entry.path().string();
    std::ifstream in;
    if (entry.is_regular_file()) in.open(path, std::ios::binary);  // a pipe would be waited for
    int32_t magic = 0;
    if (in.read(reinterpret_cast<char*>(&magic), sizeof magic) && magic == kTokenizerMagic)
      dataset.tokenizer_path = path;
    else
      shards.push_back(path);
  }
  std::ranges::sort(shards);
  return shards;
}

std::vector<TokenPart> load_text_folder(const std::string& folder, const std::string& except) {
  const auto excepted = [&](const fs::path& path) {
    std::error_code missing;
    return !except.empty() && fs::equivalent(path, except, missing);
  };
  require(!excepted(folder), "--data: found ", folder,
      ", the folder of --out, allowed: another one (what a run writes is never its data)");
  std::vector<std::string> paths;
  for (fs::recursive_directory_iterator it(folder), end; it != end; ++it) {
    if (it->is_directory() && (it->path().filename() == ".git" || excepted(it->path())))
      it.disable_recursion_pending();
    else if (it->is_regular_file())
      paths.push_back(it->path().string());
  }
  std::ranges::sort(paths);
  std::vector<TokenPart> parts;
  for (const std::string& path : paths)
    if (TokenPart file = open_part(path); is_text(file)) parts.push_back(std::move(file));
  return parts;
}

// Of the validation only what a name asks for.
void load(const std::string& path, const std::string& except, Dataset& dataset) {
  std::vector<TokenPart> train, val;
  if (path.empty()) {
    train = {{.name = "embedded", .count = int64_t(embedded_text().size())}};
  } else if (std::error_code ignored; fs::is_directory(path, ignored)) {
    const std::vector<std::string> shards = list_shards(path, dataset);
    for (const std::string& s : shards)
      (is_val_name(s) ? val : train).push_back(load_shard(s, dataset));
    if (shards.empty()) train = load_text_folder(path, except);
    require(!train.empty(), path, ": the folder holds ",
        shards.empty() ? "no text file and no .bin token shard" : "validation shards only",
        kAllowed);
  } else if (is_shard_name(path)) {
    train = {load_shard(path, dataset)};
    list_shards(fs::absolute(path).parent_path(), dataset);  // for the tokenizer
  } else {
    train = {load_text(path)};
  }
  dataset.train = Tokens(std::move(train));
  dataset.val = Tokens(std::move(val));
}

void split(int64_t seq_len, Dataset& dataset) {
  const int64_t need = seq_len + 1;  // the last token of a sequence is only a target
  if (dataset.val.size() == 0) {
    const int64_t total = dataset.train.size(), val = std::max(total / 10, need);
    require(total >= 2 * need, dataset.source, ": too short: found ", total,
        " tokens, expected at least ", 2 * need, ": a sequence of --seq-len ", seq_len,
        " and its last target for training, and one for validation");
    dataset.val = dataset.train.slice(total - val, total);
    dataset.train = dataset.train.slice(0, total - val);
  }
  for (const Tokens* t : {&dataset.train, &dataset.val})
    require(t->size() >= need, dataset.source, ": too short: found ", t->size(), " tokens in the ",
        t == &dataset.val ? "validation" : "training", " shards, expected at least ", need,
        ", one more than --seq-len");
}

}  // namespace

Dataset load_dataset(const std::string& path, int64_t seq_len, const std::string& except) {
  require(seq_len >= 1, "--seq-len: found ", seq_len, ", expected at least 1");
  Dataset dataset;
  dataset.source = path.empty() ? "embedded" : path;
  try {
    load(path, except, dataset);
  } catch (const fs::filesystem_error& e) {
    throw UsageError(cat(path, ": cannot read the folder: ", e.what()));
  }
  split(seq_len, dataset);
  dataset.hash = token_hash(dataset.train, dataset.val);
  return dataset;
}

std::string describe(const Dataset& d) {
  int64_t bytes = 0;  // as stored
  for (const Tokens* t : {&d.train, &d.val})
    for (const TokenPart& part : t->parts()) bytes += part.count * part.width;
  return cat(d.source, ": ", bytes, " bytes, ", d.tokens(), " tokens (", d.train.size(), " train, ",
      d.val.size(), " validation), vocabulary ", d.vocab_size, ", hash ", std::hex, d.hash);
}

}  // namespace duet
