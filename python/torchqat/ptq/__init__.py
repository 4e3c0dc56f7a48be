"""Post-training quantization: what ``torchqat.calibrate`` does to weights before training, or instead of it.

======================  ==========================================================================
``blocks``              a model as a row of blocks, each run on what the blocks before it give
``stages``              the layers of a block that share an input, and the statistics of that input
``rounding``            one layer onto its grid: nearest, clipped, GPTQ
``folding``             scales of channels moved into what produces them, checked
``equalize``            AWQ and SmoothQuant on a block
``rotation``            Hadamard rotation of the residual stream and of value heads
``block_training``      a block trained to give what the float block gives
``ranges``              scales of inputs and caches that are fixed beforehand
``initialize``          all of it, block after block
``calibration``         what it found
``stream``              the same from a folder into a folder, in the memory of one block
======================  ==========================================================================

What computes is C++ (``gptq.h``, ``equalize.h``, ``hadamard.h`` in ``qat/solvers``); here is what needs a model.
"""
