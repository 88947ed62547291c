// Vectors of pixels for one instruction set: loading any pixel type as float32, storing float32 as any output type.
// Included by augment_body.h.

typedef float F32 __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));
constexpr int kLanes = kVectorBytes / sizeof(float);
typedef uint16_t U16 __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint8_t U8 __attribute__((vector_size(kLanes)));

static inline F32 load(const float* from) {
  F32 v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

static inline void store(float* to, F32 v) { __builtin_memcpy(to, &v, sizeof(v)); }

static inline U32 load_bits(const uint16_t* from) {
  U16 v;
  __builtin_memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, U32);
}

static inline F32 load(const uint8_t* from) {
  U8 v;
  __builtin_memcpy(&v, from, sizeof(v));
  // Twice as wide at each step: GCC has an instruction for that, and none for four times.
  return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(v, U16), I32), F32);
}

// The exponent is re-biased by a multiplication, which also makes subnormals exact; infinity and NaN keep theirs.
static inline F32 load(const Half* from) {
  const U32 bits = load_bits(&from->bits);
  const U32 magnitude = (bits & 0x7fffu) << 13;
  const U32 special = magnitude >= 0x0f800000u ? U32{} + 0x7f800000u : U32{};
  return (F32)((U32)((F32)magnitude * 0x1p112f) | special | (bits & 0x8000u) << 16);
}

static inline F32 load(const BFloat16* from) { return (F32)(load_bits(&from->bits) << 16); }

// A permutation of two vectors with indices known at run time only: one instruction from AVX-512 on, a few with AVX2.
#if defined(__GNUC__) && !defined(__clang__)
constexpr bool kCanPermute = kVectorBytes >= 32;
static inline F32 permute(F32 low, F32 high, I32 index) { return __builtin_shuffle(low, high, index); }
#else
constexpr bool kCanPermute = false;
static inline F32 permute(F32 low, F32, I32) { return low; }
#endif

static inline F32 gather(const float* from, const int32_t* index) {
  float lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = from[index[lane]];
  return load(lanes);
}

static inline double sum_lanes(F32 v) {
  double sum = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// Round to nearest even, in the low 16 bits of each lane.
static inline U32 round_to(F32 v, Half) {
  const U32 bits = (U32)v, magnitude = bits & 0x7fffffffu;
  // Adding 1/2 to a number below 2^-14 leaves its bits in subnormal units of 2^-24, rounded by the adder.
  const U32 subnormal = (U32)((F32)magnitude + 0.5f) - 0x3f000000u;
  const U32 normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const U32 huge = magnitude > 0x7f800000u ? U32{} + 0x7e00u : U32{} + 0x7c00u;
  const U32 finite = magnitude < 0x38800000u ? subnormal : normal;
  return (magnitude >= 0x477ff000u ? huge : finite) | (bits >> 16 & 0x8000u);
}

static inline U32 round_to(F32 v, BFloat16) {
  const U32 bits = (U32)v;
  const U32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded;
}

static inline void store(float* to, F32 v, int count) { __builtin_memcpy(to, &v, count * sizeof(float)); }

template <class T>
static inline void store(T* to, F32 v, int count) {
  const U16 bits = __builtin_convertvector(round_to(v, T{}), U16);
  __builtin_memcpy(to, &bits, count * sizeof(T));
}
