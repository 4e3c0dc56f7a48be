#pragma once

// Everything that a LibTorch program needs of torchqat: recipe, plan, prepare, schedule, calibrate,
// convert, export, load, verify, and the packed layers that deploy.

#include "qat/abi.h"
#include "qat/checkpoint/checkpoint.h"
#include "qat/error.h"
#include "qat/nn/calibrate.h"
#include "qat/nn/deploy.h"
#include "qat/nn/layers.h"
#include "qat/nn/packed_linear.h"
#include "qat/nn/prepare.h"
#include "qat/nn/schedule.h"
#include "qat/recipe/plan.h"
#include "qat/recipe/recipe.h"
#include "qat/recipe/weight_types.h"
#include "qat/version.h"
