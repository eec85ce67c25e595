// All kernels, as one module.
#include "sampling.cu"
#include "norm.cu"
#include "softmax.cu"
#include "sums.cu"
#include "windows.cu"
#include "epilogue.cu"
#include "convolution.cu"
