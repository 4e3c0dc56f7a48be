#pragma once

// Everything that a LibTorch program needs of torchqat: recipe, plan, prepare, schedule, calibrate,
// convert, export, load, verify, and the packed layers that deploy.

#include "qat/abi.h"
#include "qat/calibrate.h"
#include "qat/checkpoint.h"
#include "qat/deploy.h"
#include "qat/layers.h"
#include "qat/packed_linear.h"
#include "qat/plan.h"
#include "qat/prepare.h"
#include "qat/recipe.h"
#include "qat/schedule.h"
#include "qat/version.h"
