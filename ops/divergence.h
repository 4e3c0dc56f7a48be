#pragma once

// The arithmetic of kl_divergence that both backends share; numerics.md (12).

#include <cstdint>

#include "qat/ops/exponential.h"

namespace qat {

// What a choice adds to a token's sums.
struct DivergenceTerm {
  float student;     // e^(how far its logit is below the student's largest)
  float teacher;     // e^(the same of the teacher's)
  float difference;  // that times the difference of both exponents
};

// The largest logits of a token.
struct DivergenceTops {
  float student, teacher;
};

QAT_HOST_DEVICE DivergenceTerm divergence_term(float student, float teacher, DivergenceTops tops,
                                               float inverse_temperature) {
  const float ours = exponential((student - tops.student) * inverse_temperature);
  const float theirs = exponential((teacher - tops.teacher) * inverse_temperature);
  // Logits that are close are subtracted from each other first, which rounds little.
  const float apart = (teacher - student) - (tops.teacher - tops.student);
  // A choice that the teacher rules out adds nothing, however far below the student has it.
  return {ours, theirs, theirs == 0.0f ? 0.0f : theirs * (apart * inverse_temperature)};
}

// Choices that are added up in float32, as LaneSum does; pieces are added up in float64.
constexpr int kDivergencePiece = 1024;
// Piece p joins part p % 8: so many warps of a GPU go through one token.
constexpr int kDivergenceParts = 8;

// Sums over the choices of a token, before the largest logits are taken back in.
struct DivergenceTotals {
  double student = 0.0, teacher = 0.0, difference = 0.0;

  QAT_HOST_DEVICE void add(const DivergenceTotals& other) {
    student += other.student;
    teacher += other.teacher;
    difference += other.difference;
  }
};

// What the gradient multiplies the exponentials with.
struct DivergenceFactors {
  float student, teacher;
};

struct DivergenceSums {
  DivergenceTotals parts[kDivergenceParts];

  QAT_HOST_DEVICE void add(int64_t piece, const DivergenceTotals& totals) {
    parts[piece % kDivergenceParts].add(totals);
  }
  QAT_HOST_DEVICE DivergenceTotals all() const {
    DivergenceTotals sum = parts[0];
    for (int part = 1; part < kDivergenceParts; ++part) sum.add(parts[part]);
    return sum;
  }
  QAT_HOST_DEVICE float divergence() const {
    const DivergenceTotals sum = all();
    return static_cast<float>(sum.difference / sum.teacher + logarithm(sum.student) -
                              logarithm(sum.teacher));
  }
  QAT_HOST_DEVICE DivergenceFactors factors(float share) const {
    const DivergenceTotals sum = all();
    return {static_cast<float>(share / sum.student), static_cast<float>(share / sum.teacher)};
  }
};

}  // namespace qat
