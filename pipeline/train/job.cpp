// See job.h.
#include "pipeline/train/job.h"

#include <algorithm>
#include <cstdlib>

#include "model/machine/limits.h"
#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/schedule/add_comms.h"

namespace duet {

int64_t Job::global_sequences() const {
  return layout.dp * options.microbatches * options.micro_batch_size;
}

// dp follows from the number of MPI processes where there are some.
static void find_ranks(Job& job) {
  const TrainOptions& o = job.options;
  const Launcher launcher = find_launcher();
  const bool nccl = o.transport == Wire::nccl,
             mpi = o.transport == Wire::mpi || (o.transport != Wire::local && launcher.ranks > 1);
  require(o.transport != Wire::local || launcher.ranks == 1, "--transport: found local under ",
      launcher.name, ", allowed: mpi");
  job.layout.pp = int(o.pp);
  job.layout.dp = int(o.dp ? o.dp : mpi ? std::max<int64_t>(1, launcher.ranks / o.pp) : 1);
  require(!mpi || job.layout.world() == launcher.ranks, "--dp, --pp: found ", job.layout.dp, " x ",
      job.layout.pp, ", allowed: products of ", launcher.ranks, ", the number of MPI processes");
  job.layout.ep = int(o.ep);
  require(job.layout.dp % job.layout.ep == 0, "--ep: found ", o.ep,
      ", allowed: divisors of dp = ", job.layout.dp);
  const Wire wire = nccl ? Wire::nccl : mpi ? Wire::mpi : Wire::local;
  job.run = {
      .transport = wire, .ranks = job.layout.world(), .timeout = o.comm_timeout, .link = o.link};
  job.run.link.ranks_per_node = int(o.ranks_per_node);
  job.cores = usable_cores();
  const bool processes = launcher.ranks > 1;
  job.ranks_on_cores = job.ranks_here = processes ? launcher.ranks_here : job.run.ranks;
  const char* mine = std::getenv("SLURM_CPUS_PER_TASK");  // one process's alone
  if (const auto cores = mine ? parse_number<int>(mine) : std::nullopt; cores && *cores > 0) {
    job.cores = std::min(job.cores, *cores);
    if (processes) job.ranks_on_cores = 1;
  }
  if (!nccl) return;
  require(have_nccl(),
      "--transport: found nccl, allowed: local, mpi (this duet was built without NCCL)");
  require(o.device == DeviceKind::cuda,
      "--transport: found nccl with --device cpu, allowed: local, mpi (NCCL moves GPU memory)");
  require(mpi || job.run.ranks <= cuda_device_count(), "--transport: found nccl with ",
      job.run.ranks, " ranks and ", cuda_device_count(),
      " GPUs, allowed: nccl with a GPU for each rank; local, whose ranks share GPUs");
}

// Which experts may lie where: slots for experts and replicas, equally many on each expert-parallel
// rank.
static void find_balancer(Job& job) {
  const TrainOptions& o = job.options;
  const int64_t experts = job.config.n_routed, slots = experts + o.redundant_experts;
  require(slots % o.ep == 0, o.redundant_experts ? "--redundant-experts: found " : "--ep: found ",
      o.redundant_experts ? o.redundant_experts : o.ep, ", allowed: --ep dividing ", slots, " = ",
      experts, " routed experts + ", o.redundant_experts, " redundant");
  require(slots <= kMaxReplicas, o.redundant_experts ? "--redundant-experts" : "n_routed",
      ": found ", slots, " experts with replicas, allowed: at most ", kMaxReplicas);
  require(!o.ranks_per_node || o.ep % o.ranks_per_node == 0 || o.ranks_per_node % o.ep == 0,
      "--ranks-per-node: found ", o.ranks_per_node, ", allowed: divisors and multiples of --ep ",
      o.ep);
  const EplbOptions& plan = o.balancer.plan;
  require(!plan.replicas_may_leave_node || plan.policy == EplbPolicy::balanced,
      "--replicas-may-leave-node: found --eplb-policy ", policy_name(plan.policy),
      ", allowed: balanced");
  const int64_t nodes = o.ranks_per_node ? std::max<int64_t>(1, o.ep / o.ranks_per_node) : 1;
  job.options.balancer.shape = {
      int(experts), int(slots), int(job.config.n_group), int(nodes), int(o.ep)};
}

// --- what it takes at the least ------------------------------------------------------------------

Need need_of(const Job& job) {
  const TrainOptions& o = job.options;
  const ModelConfig& c = job.config;
  const Layout& l = job.layout;
  const double here = find_launcher().ranks > 1 ? 1. / l.world() : 1;  // part of the ranks
  const double expert = 3 * double(c.d_model) * double(c.d_expert),
               moe_layers = double(std::max<int64_t>(0, c.n_layers - c.first_k_dense));
  const double routed = moe_layers * double(c.n_routed) * expert,
               replicas = moe_layers * double(o.redundant_experts) * expert;
  const double parameters =
      here * l.dp * (double(c.parameters()) - routed + (routed + replicas) / l.ep);
  const double size = o.dtype == Dtype::bf16 ? 2 : 4;
  const double tokens = here * l.dp * double(o.seq_len) * double(o.micro_batch_size);
  Need need;
  const bool computes = o.device == DeviceKind::cpu && o.rehearse.empty();
  const int64_t threads = computes ? threads_per_rank(job) : 1;
  need.threads = job.run.transport == Wire::local ? l.world() * threads : threads;
  if (!o.rehearse.empty()) {  // messages alone
    need.activations = l.pp * tokens * size * double(c.d_model);
    return need;
  }
  need.weights = parameters * (size == 4 ? 4 : 2 + 4);  // bf16 has fp32 masters
  need.gradients = need.moments = 8 * parameters;
  // of one microbatch: what flows into the two halves of each layer, and the logits
  need.activations =
      tokens * size * (2 * double(c.n_layers) * double(c.d_model) + double(c.vocab_size));
  return need;
}

// Throws UsageError that names the option, what it needs and what this machine has. Of GPUs the
// memory is not known here.
static void check_fits(const Job& job) {
  const TrainOptions& o = job.options;
  const Need need = need_of(job);
  const double threads = usable_threads(), memory = usable_memory();
  const auto gib = [](double bytes) { return format("%.1f GiB", bytes / (1 << 30)); };
  require(double(need.threads) <= threads, "--dp, --pp, --threads: found ", job.layout.dp, " x ",
      job.layout.pp, " ranks, which need at least ", need.threads, " threads, allowed: ", threads,
      " on this machine");
  if (o.device != DeviceKind::cpu || need.all() <= memory) return;
  const std::string model = o.init.empty() ? "--preset, --model" : o.init;
  const bool one_fits = job.layout.dp > 1 && need.all() / job.layout.dp <= memory;
  const bool tokens = need.activations > need.all() / 2;
  throw UsageError(cat(one_fits ? "--dp"
          : tokens              ? "--seq-len, --micro-batch-size"
                                : model,
      ": found a job that needs at least ", gib(need.all()), " (weights ", gib(need.weights),
      ", gradients ", gib(need.gradients), ", moments ", gib(need.moments), ", activations ",
      gib(need.activations), "), allowed: what fits into the ", gib(memory), " of this machine"));
}

// --- the job -------------------------------------------------------------------------------------

Job make_job(TrainOptions options, bool with_data) {
  Job job;
  job.config = options.resolve();
  if (!options.init.empty()) job.config = checkpoint_config(options.init);
  job.options = options;
  const TrainOptions& o = job.options;
  find_ranks(job);
  if (o.rehearse.empty()) find_balancer(job);
  check_fits(job);

  require(o.schedule != "-" || find_launcher().ranks == 1,
      "--schedule: found -, standard input, which one process alone has, allowed: a file");
  job.compute = make_schedule(o.schedule, {int(o.pp), int(o.microbatches), int(o.virtual_stages)});
  require(job.compute.stages() <= Tag::kStages, "--schedule, --pp: found ", job.compute.name,
      " with ", job.compute.stages(), " stages, allowed: at most ", Tag::kStages);
  job.usage = check(job.compute);
  job.schedule = add_comms(job.compute);
  if (o.rehearse.empty())
    job.layer_bounds = split_layers(job.config, o.seq_len, job.compute.model_stages(), o.split);

  if (!with_data) return job;
  job.dataset = load_dataset(o.data, o.seq_len, o.out);
  const bool stated = std::ranges::any_of(
      o.model.values, [](const auto& size) { return size.first == &ModelConfig::vocab_size; });
  if (o.init.empty() && !stated)
    job.config.vocab_size = std::max(job.config.vocab_size, job.dataset.vocab_size);
  job.batches = std::make_unique<BatchSource>(
      job.dataset, o.seq_len, job.global_sequences(), job.config.vocab_size);
  return job;
}

std::vector<std::pair<int, int>> message_pairs(const Job& job) {
  const Schedule& s = job.schedule;
  std::vector<std::pair<int, int>> pairs;
  const auto add = [&](int a, int b) {
    for (int d = 0; d < job.layout.dp && a != b; ++d)
      pairs.push_back({job.layout.rank(a, d), job.layout.rank(b, d)});
  };
  for (int stage = 0; stage < s.stages(); ++stage) {
    const int rank = s.rank_of[size_t(stage)];
    if (stage + 1 < s.stages()) add(rank, s.rank_of[size_t(stage) + 1]);
  }
  // experts and the gradients of their replicas travel
  if (job.options.redundant_experts || job.options.balancer.interval)
    for (int r = 0; r < job.layout.world(); ++r)
      for (int other : job.layout.expert_parallel_of(r))
        if (r < other) pairs.push_back({r, other});
  return pairs;
}

int threads_per_rank(const Job& job) {
  if (job.options.threads) return int(job.options.threads);
  return std::max(1, job.cores / job.ranks_on_cores);
}

std::unique_ptr<Device> make_device(const Job& job, const Comm& world) {
  const int threads = threads_per_rank(job);
  if (job.options.device != DeviceKind::cuda) return make_cpu_device(threads);
  const int gpus = cuda_device_count();
  const int peers = job.run.transport == Wire::local ? std::min(gpus, world.size()) : 0;
  return make_cuda_device(world.rank_here() % gpus, threads, peers);
}

std::string why_not_timed(const Job& job) {
  const int gpus = job.options.device == DeviceKind::cuda ? cuda_device_count() : 0;
  if (gpus && job.ranks_here > gpus) return cat(job.ranks_here, " ranks share ", gpus, " GPUs");
  if (!gpus && job.ranks_on_cores * threads_per_rank(job) > job.cores)
    return cat(job.ranks_on_cores, job.ranks_on_cores == 1 ? " rank" : " ranks",
        threads_per_rank(job) > 1 ? cat(" of ", threads_per_rank(job), " threads") : "",
        job.ranks_on_cores == 1 ? " has " : " share ", job.cores, " cores");
  return "";
}

}  // namespace duet
