// Runs of `duet train`, from outside: what a run keeps, what resuming and kills may not change, and
// what wrong input is told.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "pipeline/checkpoint/safetensors.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/trainer.h"
#include "test/run_testing.h"

namespace duet {
namespace {

class Train : public RunTest {};

TEST_F(Train, LearnsAndSaysSo) {
  TrainOptions o = options("", 60);
  o.data = "";
  o.seq_len = 32;
  o.decay_steps = 60;
  o.log_every = 59;
  o.sample = 20;
  const std::string text = run(o);
  const auto loss_after = [&](const std::string& step) {
    const size_t at = text.find("loss ", text.find(step));
    EXPECT_NE(at, std::string::npos) << text;
    return std::stod(text.substr(at + 5));
  };
  EXPECT_NEAR(loss_after("step   1/60"), std::log(256.0), 0.2);
  EXPECT_LT(loss_after("step  60/60"), 4.2);
  for (const char* part : {"model  tiny", "batch  4 microbatches", "device cpu", "data   embedded",
           "weights", "| val ", "sample:"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in\n" << text;
}

TEST_F(Train, SameBitsTwiceAndOnMoreThreads) {
  run(options("a"));
  run(options("b"));
  TrainOptions three = options("c");
  three.threads = 3;
  run(three);
  EXPECT_EQ(bits("a"), bits("b"));
  EXPECT_EQ(bits("a"), bits("c"));
  TrainOptions other = options("d");
  other.seed = 1;
  run(other);
  EXPECT_NE(bits("a"), bits("d"));
}

TEST_F(Train, FirstLossDoesNotDependOnTheDivisionIntoMicrobatches) {
  run(options("a"));
  TrainOptions two = options("b");
  two.microbatches = 2;
  two.micro_batch_size = 2;
  run(two);
  const auto a = bits("a"), b = bits("b");
  const auto loss = [](const std::string& line) { return line.substr(0, line.find(' ', 2)); };
  EXPECT_EQ(loss(a[0]), loss(b[0]));
}

TEST_F(Train, ResumedRunHasTheBitsOfAnUninterruptedOne) {
  run(options("whole", 6));
  TrainOptions part = options("parts", 2);
  for (int64_t steps : {2, 5, 6}) {
    part.steps = steps;
    part.resume = true;  // the first time there is nothing to resume: it starts
    run(part);
  }
  EXPECT_EQ(bits("whole"), bits("parts"));
}

TEST_F(Train, KilledRunGoesOnFromItsLastCheckpoint) {
  run(options("whole", 8));
  TrainOptions o = options("killed", 8);
  o.checkpoint_every = 2;
  for (int attempt = 0; attempt < 3; ++attempt) {
    o.resume = true;
    const pid_t child = fork();
    if (child == 0) {
      std::ostringstream text;
      train_command(o, text);
      _exit(0);
    }
    usleep(60000 + 45000 * attempt);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  run(o);
  EXPECT_EQ(bits("whole"), bits("killed"));
}

TEST_F(Train, SignalFinishesTheStepAndSaves) {
  TrainOptions o = options("run", 100000);
  std::thread sender([] {
    usleep(150000);
    kill(getpid(), SIGTERM);
  });
  std::ostringstream said;
  EXPECT_EQ(train_command(o, said), 128 + SIGTERM);
  const std::string text = said.str();
  sender.join();
  EXPECT_NE(text.find("--resume"), std::string::npos) << text;
  EXPECT_TRUE(is_complete(newest_checkpoint(o.out)));
}

TEST_F(Train, SignalEndsTheSample) {
  TrainOptions o = options("run", 1);
  o.sample = 1000000;
  std::thread sender([] {
    sleep(1);
    kill(getpid(), SIGTERM);
  });
  std::ostringstream said;
  EXPECT_EQ(train_command(o, said), 128 + SIGTERM);
  sender.join();
  EXPECT_NE(said.str().find("sample:"), std::string::npos) << said.str();
  EXPECT_TRUE(is_complete(newest_checkpoint(o.out)));
}

TEST_F(Train, InfiniteLossStopsAndKeepsTheLastGoodCheckpoint) {
  TrainOptions o = options("run", 40);
  o.checkpoint_every = 1;
  o.clip = 0;
  o.warmup_steps = 0;
  o.adamw.lr = 1000;
  o.adamw.weight_decay = 1000;
  try {
    run(o);
    FAIL() << "a learning rate of 1000 did not diverge";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("step "), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("finite"), std::string::npos) << error.what();
  }
  const std::string last = newest_checkpoint(o.out);
  ASSERT_FALSE(last.empty());
  EXPECT_NO_THROW(verify(last));
}

TEST_F(Train, ImportStartsFromAnotherModelsWeights) {
  run(options("first", 3));
  TrainOptions o = options("second", 1);
  o.init = newest_checkpoint(folder_ + "/first");
  o.model = {};
  o.adamw.lr = 0;
  o.bias_update_speed = 0;
  run(o);
  const std::string before = contents(o.init + "/model.safetensors");
  EXPECT_FALSE(before.empty());
  EXPECT_TRUE(before == contents(newest_checkpoint(o.out) + "/model.safetensors"));
}

// Large models of others come in several files: model.safetensors.index.json says which file has
// which tensor.
TEST_F(Train, ImportReadsAModelInSeveralFiles) {
  run(options("first", 3));
  const std::string from = newest_checkpoint(folder_ + "/first"), parts = folder_ + "/parts";
  fs::create_directory(parts);
  fs::copy_file(from + "/config.json", parts + "/config.json");
  const SafetensorsReader whole(from + "/model.safetensors");
  std::vector<TensorSpec> specs[2];
  Json weight_map = Json::object();
  for (const auto& [name, tensor] : whole.tensors()) {
    const size_t part = weight_map.members().size() % 2;
    specs[part].push_back(tensor);
    weight_map.set(name, cat("part-", part, ".safetensors"));
  }
  const auto write = [&](int part) {
    FileWriter file(cat(parts, "/part-", part, ".safetensors"));
    SafetensorsWriter writer(file, specs[part]);
    for (const TensorSpec& t : writer.tensors())
      writer.write(
          t.name, whole.bytes(*whole.find(t.name), 0, t.bytes()).data(), size_t(t.bytes()));
    writer.finish();
    file.close();
  };
  write(0), write(1);
  std::ofstream(parts + "/model.safetensors.index.json")
      << Json::object({{"weight_map", weight_map}}).dump();

  TrainOptions o = options("second", 1);
  o.init = parts;
  o.model = {};
  o.adamw.lr = 0;
  o.bias_update_speed = 0;
  run(o);
  EXPECT_TRUE(contents(from + "/model.safetensors") ==
      contents(newest_checkpoint(o.out) + "/model.safetensors"));

  const auto again = [&] {
    o = options("third", 1);
    o.init = parts;
    o.model = {};
    run(o);
  };
  specs[1].push_back(specs[0].front());
  write(1);
  expect_refused(again, {"model.safetensors.index.json", "in two files"});
  fs::remove(parts + "/part-1.safetensors");
  expect_refused(again, {"part-1.safetensors"});
}

TEST_F(Train, GeneratesFromACheckpoint) {
  run(options("run", 2));
  GenerateOptions g{.from = folder_ + "/run",
      .tokenizer = "",
      .device = DeviceKind::cpu,
      .threads = 1,
      .sample = {.prompt = "To be", .tokens = 24}};
  std::ostringstream a, b;
  generate_command(g, a);
  generate_command(g, b);
  EXPECT_EQ(a.str(), b.str());
  EXPECT_EQ(a.str().substr(0, 5), "To be");
  g.from = folder_ + "/nowhere";
  expect_refused([&] { generate_command(g, a); }, {"--from", "nowhere"});
}

TEST_F(Train, ValidationComputesWhatItNeedsAndKeepsNoForward) {
  int64_t flops[4] = {};
  for (const int sequences : {1, 3}) {  // of four microbatches
    TrainOptions o = options("", 1);
    o.micro_batch_size = 1;
    o.val_sequences = sequences;
    const Job job = make_job(o);
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      train_step(trainer, 1);
      const int64_t peak = device->memory(Use::activations).peak, before = device->flops;
      validation_loss(trainer);
      flops[sequences] = device->flops - before;
      EXPECT_EQ(device->memory(Use::activations).peak, peak) << "more than one training needs";
    });
  }
  EXPECT_GT(flops[1], 0);
  EXPECT_EQ(flops[3], 3 * flops[1]);
}

// Else a GPU would idle while the host makes the plan.
TEST_F(Train, WhereNoTokenLeavesTheSharedExpertsAreEnqueuedBeforeTheHostWaits) {
  const Job job = make_job(options("", 1));
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    Recorder recorder(*device);
    train_step(trainer, 1, {.recorder = &recorder});
    int shared = 0, waits = 0;
    for (const Recorder::Entry& e : recorder.entries()) {
      shared += e.activity.name == std::string("shared F") && e.activity.layer > 0;  // 0 is dense
      waits += e.activity.name == std::string("choices") && e.activity.track == std::string("wait");
      EXPECT_LE(waits, shared);
    }
    EXPECT_EQ(waits, 2 * 4);  // layers, microbatches
  });
}

// --- wrong input ---------------------------------------------------------------------------------

TEST_F(Train, RefusesWrongOptionsAndWritesNothing) {
  const auto refused = [&](auto change, const std::vector<std::string>& words) {
    TrainOptions o = options("run");
    change(o);
    expect_refused([&] { run(o); }, words);
    EXPECT_FALSE(fs::exists(folder_ + "/run")) << words[0];
  };
  refused([](TrainOptions& o) { o.preset = "huge"; }, {"--preset", "huge", "tiny"});
  refused([](TrainOptions& o) { o.model = parse_sizes("topk=9"); }, {"topk", "9", "8"});
  refused([](TrainOptions& o) { o.model = parse_sizes("n_group=3"); }, {"n_group", "3", "8"});
  refused([](TrainOptions& o) { o.dtype = Dtype::bf16; }, {"--dtype", "bf16", "fp32"});
  if (cuda_device_count() == 0)
    refused([](TrainOptions& o) { o.device = DeviceKind::cuda; }, {"--device", "cuda", "cpu"});
  refused([](TrainOptions& o) { o.data = "/no/such/file"; }, {"/no/such/file"});
  refused(
      [this](TrainOptions& o) {
        std::ofstream(folder_ + "/short.txt") << "short";
        o.data = folder_ + "/short.txt";
      },
      {"short.txt"});
  refused(
      [](TrainOptions& o) { o.seq_len = 1000000; }, {"words.txt", "78951", "--seq-len 1000000"});
  refused([](TrainOptions& o) { o.data = "", o.seq_len = 1000000; }, {"embedded"});
  refused(
      [](TrainOptions& o) {
        o.model = parse_sizes("vocab_size=100");
        o.init = "";
        o.dtype = Dtype::bf16;
      },
      {"--dtype"});
}

TEST_F(Train, RefusesAFolderThatHoldsARunOrCannotBeMade) {
  run(options("run", 1));
  expect_refused([&] { run(options("run", 1)); }, {"--out", "--resume", "--overwrite"});
  TrainOptions o = options("run", 1);
  o.overwrite = true;
  run(o);
  std::ofstream(folder_ + "/file") << "x";
  expect_refused([&] { run(options("file/run", 1)); }, {"--out", "file/run"});
}

TEST_F(Train, NamesWhatIsDamagedInACheckpoint) {
  run(options("run", 1));
  const std::string dir = newest_checkpoint(folder_ + "/run");
  TrainOptions o = options("run", 2);
  o.resume = true;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "trainer.json"}) {
    const std::string path = dir + "/" + name, good = contents(path);
    std::string altered = good;
    altered[altered.size() / 2] ^= 1;
    std::ofstream(path, std::ios::binary) << altered;
    expect_refused([&] { run(o); }, {name});
    std::ofstream(path, std::ios::binary) << good.substr(0, good.size() - 3);
    expect_refused([&] { run(o); }, {name});
    std::ofstream(path, std::ios::binary) << good;
  }
  TrainOptions other = o;
  other.model = parse_sizes("n_layers=2");
  expect_refused([&] { run(other); }, {"--resume", "another model"});
  EXPECT_NO_THROW(run(o));
}

}  // namespace
}  // namespace duet
