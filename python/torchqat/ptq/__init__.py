"""Post-training quantization: what ``torchqat.calibrate`` does to weights before training, or instead of it.

======================  ==========================================================================
``block``               one block, run on what the block before it gives, and the whole model as one
``calls``               what modules of others are called with and give
``trial``               what blocks really do, seen in one forward
``blocks``              a model cut into rows of blocks, as the trial shows them
``sequences``           calls of a block taken apart into sequences
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
