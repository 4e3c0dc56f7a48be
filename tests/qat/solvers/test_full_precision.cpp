#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "qat/solvers/equalize.h"
#include "qat/solvers/full_precision.h"
#include "qat/solvers/gptq.h"
#include "qat/solvers/input_statistics.h"
#include "tests/qat/group_spec.h"

namespace qat {
namespace {

using at::Float32Backend;
using at::Float32Op;
using at::Float32Precision;

class Autocast {
 public:
  Autocast() {
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  ~Autocast() { at::autocast::set_autocast_enabled(at::kCPU, false); }
};

// What every solver says of one layer.
std::vector<at::Tensor> solved() {
  at::manual_seed(0);
  const at::Tensor weight = at::randn({8, 32}), x = at::randn({64, 32}), original = x + 0.1;
  InputStatistics inputs(32, /*drift=*/true);
  inputs.add(x, original);
  GptqOptions options;
  options.correction = 0.5;
  const QuantSpec spec = group_spec(4, 16);
  const RoundedWeight rounded =
      solvers::gptq(weight, inputs.hessian(), spec, 4, options, inputs.drift());
  const solvers::ChannelScale scale = solvers::awq_scale({{weight, spec, 4}}, inputs);
  const auto [clipped, zero] = solvers::clipped_qparams(weight, inputs.hessian(), spec, 4);
  return {inputs.hessian(),
          *inputs.drift(),
          rounded.codes,
          rounded.scale,
          rounded.target,
          scale.scale,
          clipped,
          at::tensor({scale.loss, scale.plain, solvers::output_error(weight, inputs.hessian())})};
}

TEST(FullPrecision, SolversGiveTheSameUnderAutocast) {
  const auto plain = solved();
  const Autocast autocast;
  const auto cast = solved();
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], cast[i])) << i;
  EXPECT_EQ(at::mm(plain[0], plain[0]).scalar_type(), at::kBFloat16);  // as it was before
}

// Of the process, for the products of solvers that are under way.
std::set<at::Float32MatmulPrecision> seen;

std::unique_ptr<at::ObserverContext> look(const at::RecordFunction& call) {
  const std::string name = call.name();
  if (name == "aten::mm" || name == "aten::addmm_")
    seen.insert(at::globalContext().float32MatmulPrecision());
  return nullptr;
}

TEST(FullPrecision, SolversMultiplyInFloat32AndLeaveTheSettingAsItWas) {
  seen.clear();
  at::globalContext().setFloat32MatmulPrecision("medium");
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&look).scopes({at::RecordScope::FUNCTION}));
  solved();
  at::removeCallback(handle);
  EXPECT_EQ(seen, std::set{at::Float32MatmulPrecision::HIGHEST});
  EXPECT_EQ(at::globalContext().float32MatmulPrecision(), at::Float32MatmulPrecision::MEDIUM);
  at::globalContext().setFloat32MatmulPrecision("highest");
}

Float32Precision on_cuda() {
  return at::globalContext().float32Precision(Float32Backend::CUDA, Float32Op::MATMUL);
}

TEST(FullPrecision, TheLastOfSeveralPutsBackWhatTheFirstFound) {
  auto& context = at::globalContext();
  context.setFloat32MatmulPrecision("high");
  {
    const solvers::FullPrecision outer;
    {
      const solvers::FullPrecision inner;
    }
    EXPECT_EQ(on_cuda(), Float32Precision::IEEE);
  }
  EXPECT_EQ(on_cuda(), Float32Precision::TF32);
  EXPECT_EQ(context.float32MatmulPrecision(), at::Float32MatmulPrecision::HIGH);
  context.setFloat32MatmulPrecision("highest");
}

// Of one backend alone, which the older interface refuses to speak of.
TEST(FullPrecision, PutsBackWhatTheNewerInterfaceSet) {
  auto& context = at::globalContext();
  const Float32Precision before = on_cuda();
  context.setFloat32Precision(Float32Backend::CUDA, Float32Op::MATMUL, Float32Precision::TF32);
  {
    const solvers::FullPrecision full;
    EXPECT_EQ(on_cuda(), Float32Precision::IEEE);
    EXPECT_FALSE(context.allowTF32CuBLAS());
  }
  EXPECT_EQ(on_cuda(), Float32Precision::TF32);
  context.setFloat32Precision(Float32Backend::CUDA, Float32Op::MATMUL, before);
}

}  // namespace
}  // namespace qat
