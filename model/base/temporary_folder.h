// A folder that nobody else has, gone with its owner.
// Read next: embed.h.
#pragma once
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "model/base/check.h"

namespace duet {

struct TemporaryFolder {
  TemporaryFolder() {
    std::error_code error;
    path = (std::filesystem::temp_directory_path(error) / "duet-XXXXXX").string();
    if (error) throw Error("TMPDIR: names no folder for temporary files: " + error.message());
    if (!mkdtemp(path.data())) throw Error(path + cannot_be("made"));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

}  // namespace duet
