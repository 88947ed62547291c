// Vectors of float and double for one instruction set, and 2^x on them; included by a kernel's body file.
//
// 2^x = 2^k 2^f with k = round(x), |f| <= 1/2. Adding 1.5 * 2^(mantissa bits) rounds x to an integer and leaves k in
// the low bits of the sum, from where a shift moves it into the exponent field. 2^f is a polynomial whose constant term
// is exactly 1: of degree 6 for float (minimax, relative error 2.0e-9 before rounding), the Taylor polynomial of degree
// 13 for double (4e-18). Measured against correctly rounded values, the result is within 1.3 units in the last place.

namespace {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Scalar = float;
  static constexpr int kLanes = kVectorBytes / sizeof(float);
  typedef float V __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr int kMantissaBits = 23;
  static constexpr float kMinExponent = -126.0f;
  static constexpr float kLargest = 3.40282347e38f;

  static inline V exp2_fraction(V f) {
    V p = f * 1.53533606e-4f + 1.33988749e-3f;
    p = p * f + 9.61843737e-3f;
    p = p * f + 5.55033247e-2f;
    p = p * f + 2.40226479e-1f;
    p = p * f + 6.93147203e-1f;
    return p * f + 1.0f;
  }
};

template <>
struct Simd<double> {
  using Scalar = double;
  static constexpr int kLanes = kVectorBytes / sizeof(double);
  typedef double V __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissaBits = 52;
  static constexpr double kMinExponent = -1022.0;
  static constexpr double kLargest = 1.7976931348623157e308;

  static inline V exp2_fraction(V f) {
    constexpr double kLn2 = 0.69314718055994530942;
    const V y = f * kLn2;
    V p = y * (1.0 / 6227020800) + 1.0 / 479001600;  // 1/13!, 1/12!, ...
    p = p * y + 1.0 / 39916800;
    p = p * y + 1.0 / 3628800;
    p = p * y + 1.0 / 362880;
    p = p * y + 1.0 / 40320;
    p = p * y + 1.0 / 5040;
    p = p * y + 1.0 / 720;
    p = p * y + 1.0 / 120;
    p = p * y + 1.0 / 24;
    p = p * y + 1.0 / 6;
    p = p * y + 0.5;
    p = p * y + 1.0;
    return p * y + 1.0;
  }
};

// 2^x for x in [-126, 127] (double: [-1022, 1023]); some number outside, for pairs that are masked afterwards. A NaN
// whose low payload bits are zero stays NaN.
template <class T>
inline typename Simd<T>::V exp2_in_range(typename Simd<T>::V x) {
  using S = Simd<T>;
  const typename S::V rounded = x + S::kRound;
  const typename S::V p = S::exp2_fraction(x - (rounded - S::kRound));
  return (typename S::V)((typename S::Bits)p + ((typename S::Bits)rounded << S::kMantissaBits));
}

// 2^x for any x <= 127 (double: 1023), -inf included: 0 where the result would be denormal.
template <class T>
inline typename Simd<T>::V exp2_flushed(typename Simd<T>::V x) {
  using S = Simd<T>;
  const typename S::V zero = {}, floor = zero + S::kMinExponent;
  const typename S::V y = exp2_in_range<T>(x < floor ? floor : x);
  return x < floor ? zero : y;
}

}  // namespace
