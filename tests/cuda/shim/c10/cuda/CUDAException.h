#pragma once
// Stands in for torch's header where CUDA is simulated.
