#include "qat/ops/kl_divergence.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "qat/ops/arguments.h"
#include "qat/ops/cpu/convert.h"
#include "qat/ops/cpu/lane_sum.h"
#include "qat/ops/divergence.h"
#include "qat/ops/kernels.h"

namespace qat {
namespace {

// Vectors of a row that stay in cache: exponentials of the student's and of the teacher's logits.
struct Room {
  explicit Room(int64_t choices) : student(choices), teacher(choices) {}
  std::vector<float> student, teacher;
};

template <typename scalar_t>
QAT_HOST_DEVICE void widen(const scalar_t* __restrict in, float* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

// Lane by lane, since a maximum over neighbours is not vectorised. NaN is passed over.
QAT_HOST_DEVICE float largest(const float* x, int64_t count) {
  constexpr int kLanes = 32;
  float lanes[kLanes];
  for (float& lane : lanes) lane = -INFINITY;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
  for (; i < count; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  float found = lanes[0];
  for (const float lane : lanes) found = lane > found ? lane : found;
  return found;
}

// Writes the exponentials of a row over its logits, and returns their sums.
QAT_HOST_DEVICE DivergenceSums exponentials(float* __restrict student, float* __restrict teacher,
                                            int64_t choices, float inverse_temperature) {
  const DivergenceTops tops{largest(student, choices), largest(teacher, choices)};
  DivergenceSums sums;
  alignas(64) float terms[kDivergencePiece];
  for (int64_t from = 0, piece = 0; from < choices; from += kDivergencePiece, ++piece) {
    const int64_t count = std::min<int64_t>(kDivergencePiece, choices - from);
    float* ours = student + from;
    float* theirs = teacher + from;
    for (int64_t i = 0; i < count; ++i) {
      const DivergenceTerm term = divergence_term(ours[i], theirs[i], tops, inverse_temperature);
      ours[i] = term.student;
      theirs[i] = term.teacher;
      terms[i] = term.difference;
    }
    const auto total = [count](const float* of) {
      LaneSum<float> sum;
      sum.clear();
      sum.add(of, count);
      return static_cast<double>(sum.total());
    };
    sums.add(piece, {total(ours), total(theirs), total(terms)});
  }
  return sums;
}

template <typename scalar_t>
QAT_HOST_DEVICE void write_gradient(const Room& room, DivergenceFactors by,
                                    scalar_t* __restrict out) {
  const float* __restrict ours = room.student.data();
  const float* __restrict theirs = room.teacher.data();
  const auto choices = static_cast<int64_t>(room.student.size());
  for (int64_t i = 0; i < choices; ++i)
    out[i] = narrowed<scalar_t>(canonical(ours[i] * by.student - theirs[i] * by.teacher));
}

template <typename student_t, typename teacher_t>
void find_rows(const Divergence& of) {
  const int64_t choices = of.student.size(-1), tokens = of.kl.numel();
  const auto* student = of.student.const_data_ptr<student_t>();
  const auto* teacher = of.teacher.const_data_ptr<teacher_t>();
  const bool* counted = data_or_null<bool>(of.counted);
  const float share = of.share ? *of.share->const_data_ptr<float>() : 0.0f;
  auto* gradient = of.share ? of.gradient.mutable_data_ptr<student_t>() : nullptr;
  auto* kl = of.kl.mutable_data_ptr<float>();
  at::parallel_for(0, tokens, 1, [&](int64_t begin, int64_t end) {
    Room room(choices);
    vectorised([&]() QAT_BODY {
      for (int64_t token = begin; token < end; ++token) {
        student_t* out = gradient ? gradient + token * choices : nullptr;
        if (counted && !counted[token]) {
          kl[token] = 0.0f;
          if (out) std::fill_n(out, choices, student_t(0.0f));
          continue;
        }
        widen(student + token * choices, room.student.data(), choices);
        widen(teacher + token * choices, room.teacher.data(), choices);
        const DivergenceSums sums =
            exponentials(room.student.data(), room.teacher.data(), choices, of.inverse_temperature);
        kl[token] = sums.divergence();
        if (out) write_gradient(room, sums.factors(share * of.inverse_temperature), out);
      }
    });
  });
}

void find(const Divergence& of) {
  QAT_DISPATCH_FLOAT(of.student.scalar_type(), "kl_divergence", [&] {
    using student_t = scalar_t;
    QAT_DISPATCH_FLOAT(of.teacher.scalar_type(), "kl_divergence",
                       [&] { find_rows<student_t, scalar_t>(of); });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { implement_kl_divergence(m, &find); }

}  // namespace qat
