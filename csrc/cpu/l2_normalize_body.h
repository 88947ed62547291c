// Row L2-normalisation for one instruction set; included by l2_normalize.cpp through for_each_isa.h.

using Doubles = double __attribute__((vector_size(kVectorBytes)));
constexpr int kLanes = kVectorBytes / sizeof(double);

// kLanes elements of T (GCC takes no dependent type in a vector_size alias, hence the two specialisations).
template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float Type __attribute__((vector_size(kLanes * sizeof(float))));
};
template <>
struct LanesOf<double> {
  typedef double Type __attribute__((vector_size(kLanes * sizeof(double))));
};

// Summed in double, so that the square of no float overflows.
template <class T>
static inline double dot(const T* a, const T* b, int64_t n) {
  Doubles sum = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    typename LanesOf<T>::Type va, vb;
    __builtin_memcpy(&va, a + k, sizeof(va));
    __builtin_memcpy(&vb, b + k, sizeof(vb));
    sum += __builtin_convertvector(va, Doubles) * __builtin_convertvector(vb, Doubles);
  }
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  for (; k < n; ++k) total += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return total;
}

template <class T>
static void forward_rows(const L2NormalizeForward<T>& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = args.x + row * args.dim;
    T* u = args.u + row * args.dim;
    const T r = inverse_norm<T>(dot(x, x, args.dim), args.eps);
    args.inv_norm[row] = r;
    for (int64_t k = 0; k < args.dim; ++k) u[k] = x[k] * r;
  }
}

template <class T>
static void backward_rows(const L2NormalizeBackward<T>& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* u = args.u + row * args.dim;
    const T* du = args.du + row * args.dim;
    T* dx = args.dx + row * args.dim;
    const T r = args.inv_norm[row];
    const T along = norm_was_clamped(r, args.eps) ? T(0) : static_cast<T>(dot(u, du, args.dim));
    for (int64_t k = 0; k < args.dim; ++k) dx[k] = r * (du[k] - u[k] * along);
  }
}
