/* Number formats: conversions against golden vectors and against the definition, and the packed layout of matmul.h.
 *
 * The golden vectors come from quantize and dequantize of the Python package gguf 0.19 (gguf.quants); the same code was
 * compared with libggml-base 0.27 on 10^7 weights a format. */

#include "tests/tests.h"

#include "quant/half.h"
#include "quant/matmul.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const float weights[64] = {
    0x1p-14f, 0x1.e97p-7f, -0x1.c12p-7f, -0x1.6cc8p-5f, -0x1.7478p-6f, -0x1.962cp-5f, 0x1.8a4p-9f, 0x1.127ap-4f,
    -0x1.9338p-6f, -0x1.fc48p-6f, 0x1.9148p-6f, 0x1.246p-6f, 0x1.596p-8f, -0x1.7d2p-5f, -0x1.7f8p-10f, 0x1.1cccp-5f,
    -0x1.134cp-4f, -0x1.76ep-6f, -0x1.855ep-4f, -0x1.0818p-4f, -0x1.793p-4f, -0x1.813p-7f, -0x1.0392p-4f, 0x1.bc7p-7f,
    0x1.00dp-7f, -0x1.324p-7f, -0x1.01b7p-3f, -0x1.b95p-6f, -0x1.3dcp-9f, 0x1.734p-8f, -0x1.396p-4f, -0x1.876p-6f,
    -0x1.fcp+5f, 0x1.fcp+5f, 0x1p-2f, -0x1p-2f, 0x1.8p-1f, -0x1.8p-1f, 0x1.4p+0f, -0x1.4p+0f, -0x0p+0f, 0x0p+0f,
    0x1p-1f, -0x1p-1f, 0x1.2p+2f, -0x1.ep+1f, 0x1.68p+3f, 0x1.9p+3f, -0x1.44p+4f, 0x1.fcp+4f, -0x1.fcp+4f, 0x1.4p+5f,
    -0x1.7dp+5f, 0x1.bcp+5f, 0x1.fcp+2f, -0x1.fcp+2f, 0x1.fcp+3f, -0x1.fcp+3f, 0x1.7cp+4f, -0x1.7cp+4f, 0x1.f6p+5f,
    -0x1.fap+5f, 0x1.fap+5f, 0x1p+0f,
};
static const uint8_t f16_bytes[128] = {
    0x00, 0x04, 0xa6, 0x23, 0x04, 0xa3, 0xb3, 0xa9, 0xd2, 0xa5, 0x59, 0xaa, 0x29, 0x1a, 0x4a, 0x2c, 0x4d, 0xa6, 0xf1,
    0xa7, 0x45, 0x26, 0x92, 0x24, 0x66, 0x1d, 0xf4, 0xa9, 0xfe, 0x95, 0x73, 0x28, 0x4d, 0xac, 0xdc, 0xa5, 0x15, 0xae,
    0x20, 0xac, 0xe5, 0xad, 0x05, 0xa2, 0x0e, 0xac, 0xf2, 0x22, 0x03, 0x20, 0xc9, 0xa0, 0x07, 0xb0, 0xe5, 0xa6, 0xf7,
    0x98, 0xcd, 0x1d, 0xe6, 0xac, 0x1e, 0xa6, 0xf0, 0xd3, 0xf0, 0x53, 0x00, 0x34, 0x00, 0xb4, 0x00, 0x3a, 0x00, 0xba,
    0x00, 0x3d, 0x00, 0xbd, 0x00, 0x80, 0x00, 0x00, 0x00, 0x38, 0x00, 0xb8, 0x80, 0x44, 0x80, 0xc3, 0xa0, 0x49, 0x40,
    0x4a, 0x10, 0xcd, 0xf0, 0x4f, 0xf0, 0xcf, 0x00, 0x51, 0xf4, 0xd1, 0xf0, 0x52, 0xf0, 0x47, 0xf0, 0xc7, 0xf0, 0x4b,
    0xf0, 0xcb, 0xf0, 0x4d, 0xf0, 0xcd, 0xd8, 0x53, 0xe8, 0xd3, 0xe8, 0x53, 0x00, 0x3c,
};
static const float f16_floats[64] = {
    0x1p-14f, 0x1.e98p-7f, -0x1.c1p-7f, -0x1.6ccp-5f, -0x1.748p-6f, -0x1.964p-5f, 0x1.8a4p-9f, 0x1.128p-4f,
    -0x1.934p-6f, -0x1.fc4p-6f, 0x1.914p-6f, 0x1.248p-6f, 0x1.598p-8f, -0x1.7dp-5f, -0x1.7f8p-10f, 0x1.1ccp-5f,
    -0x1.134p-4f, -0x1.77p-6f, -0x1.854p-4f, -0x1.08p-4f, -0x1.794p-4f, -0x1.814p-7f, -0x1.038p-4f, 0x1.bc8p-7f,
    0x1.00cp-7f, -0x1.324p-7f, -0x1.01cp-3f, -0x1.b94p-6f, -0x1.3dcp-9f, 0x1.734p-8f, -0x1.398p-4f, -0x1.878p-6f,
    -0x1.fcp+5f, 0x1.fcp+5f, 0x1p-2f, -0x1p-2f, 0x1.8p-1f, -0x1.8p-1f, 0x1.4p+0f, -0x1.4p+0f, -0x0p+0f, 0x0p+0f,
    0x1p-1f, -0x1p-1f, 0x1.2p+2f, -0x1.ep+1f, 0x1.68p+3f, 0x1.9p+3f, -0x1.44p+4f, 0x1.fcp+4f, -0x1.fcp+4f, 0x1.4p+5f,
    -0x1.7dp+5f, 0x1.bcp+5f, 0x1.fcp+2f, -0x1.fcp+2f, 0x1.fcp+3f, -0x1.fcp+3f, 0x1.7cp+4f, -0x1.7cp+4f, 0x1.f6p+5f,
    -0x1.fap+5f, 0x1.fap+5f, 0x1p+0f,
};
static const uint8_t bf16_bytes[128] = {
    0x80, 0x38, 0x75, 0x3c, 0x61, 0xbc, 0x36, 0xbd, 0xba, 0xbc, 0x4b, 0xbd, 0x45, 0x3b, 0x89, 0x3d, 0xca, 0xbc, 0xfe,
    0xbc, 0xc9, 0x3c, 0x92, 0x3c, 0xad, 0x3b, 0x3f, 0xbd, 0xc0, 0xba, 0x0e, 0x3d, 0x8a, 0xbd, 0xbb, 0xbc, 0xc3, 0xbd,
    0x84, 0xbd, 0xbd, 0xbd, 0x41, 0xbc, 0x82, 0xbd, 0x5e, 0x3c, 0x00, 0x3c, 0x19, 0xbc, 0x01, 0xbe, 0xdd, 0xbc, 0x1f,
    0xbb, 0xba, 0x3b, 0x9d, 0xbd, 0xc4, 0xbc, 0x7e, 0xc2, 0x7e, 0x42, 0x80, 0x3e, 0x80, 0xbe, 0x40, 0x3f, 0x40, 0xbf,
    0xa0, 0x3f, 0xa0, 0xbf, 0x00, 0x80, 0x00, 0x00, 0x00, 0x3f, 0x00, 0xbf, 0x90, 0x40, 0x70, 0xc0, 0x34, 0x41, 0x48,
    0x41, 0xa2, 0xc1, 0xfe, 0x41, 0xfe, 0xc1, 0x20, 0x42, 0x3e, 0xc2, 0x5e, 0x42, 0xfe, 0x40, 0xfe, 0xc0, 0x7e, 0x41,
    0x7e, 0xc1, 0xbe, 0x41, 0xbe, 0xc1, 0x7b, 0x42, 0x7d, 0xc2, 0x7d, 0x42, 0x80, 0x3f,
};
static const float bf16_floats[64] = {
    0x1p-14f, 0x1.eap-7f, -0x1.c2p-7f, -0x1.6cp-5f, -0x1.74p-6f, -0x1.96p-5f, 0x1.8ap-9f, 0x1.12p-4f, -0x1.94p-6f,
    -0x1.fcp-6f, 0x1.92p-6f, 0x1.24p-6f, 0x1.5ap-8f, -0x1.7ep-5f, -0x1.8p-10f, 0x1.1cp-5f, -0x1.14p-4f, -0x1.76p-6f,
    -0x1.86p-4f, -0x1.08p-4f, -0x1.7ap-4f, -0x1.82p-7f, -0x1.04p-4f, 0x1.bcp-7f, 0x1p-7f, -0x1.32p-7f, -0x1.02p-3f,
    -0x1.bap-6f, -0x1.3ep-9f, 0x1.74p-8f, -0x1.3ap-4f, -0x1.88p-6f, -0x1.fcp+5f, 0x1.fcp+5f, 0x1p-2f, -0x1p-2f,
    0x1.8p-1f, -0x1.8p-1f, 0x1.4p+0f, -0x1.4p+0f, -0x0p+0f, 0x0p+0f, 0x1p-1f, -0x1p-1f, 0x1.2p+2f, -0x1.ep+1f,
    0x1.68p+3f, 0x1.9p+3f, -0x1.44p+4f, 0x1.fcp+4f, -0x1.fcp+4f, 0x1.4p+5f, -0x1.7cp+5f, 0x1.bcp+5f, 0x1.fcp+2f,
    -0x1.fcp+2f, 0x1.fcp+3f, -0x1.fcp+3f, 0x1.7cp+4f, -0x1.7cp+4f, 0x1.f6p+5f, -0x1.fap+5f, 0x1.fap+5f, 0x1p+0f,
};
static const uint8_t q4_0_bytes[36] = {
    0x07, 0x24, 0x48, 0x79, 0x27, 0x45, 0x27, 0x75, 0x48, 0x9c, 0x86, 0x76, 0x0a, 0x69, 0x88, 0x85, 0x38, 0x6a, 0xf0,
    0x47, 0x50, 0xcf, 0x48, 0xd8, 0x28, 0xf8, 0x98, 0x78, 0xa8, 0x68, 0xb8, 0x58, 0xf9, 0x08, 0xf9, 0x8a,
};
static const float q4_0_floats[64] = {
    0x0p+0f, 0x1.01cp-6f, -0x1.01cp-6f, -0x1.82ap-5f, -0x1.01cp-6f, -0x1.82ap-5f, 0x0p+0f, 0x1.01cp-4f, -0x1.01cp-5f,
    -0x1.01cp-5f, 0x1.01cp-5f, 0x1.01cp-6f, 0x0p+0f, -0x1.82ap-5f, 0x0p+0f, 0x1.01cp-5f, -0x1.01cp-4f, -0x1.01cp-6f,
    -0x1.82ap-4f, -0x1.01cp-4f, -0x1.82ap-4f, -0x1.01cp-6f, -0x1.01cp-4f, 0x1.01cp-6f, 0x0p+0f, -0x1.01cp-6f,
    -0x1.01cp-3f, -0x1.01cp-5f, 0x0p+0f, 0x0p+0f, -0x1.423p-4f, -0x1.01cp-5f, -0x1.fcp+5f, 0x1.bc8p+5f, 0x0p+0f,
    0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x1.fcp+2f, 0x0p+0f, 0x1.fcp+2f,
    0x1.fcp+3f, -0x1.7dp+4f, 0x1.fcp+4f, -0x1.fcp+4f, 0x1.3d8p+5f, -0x1.7dp+5f, 0x1.bc8p+5f, 0x1.fcp+2f, -0x1.fcp+2f,
    0x1.fcp+3f, -0x1.fcp+3f, 0x1.7dp+4f, -0x1.7dp+4f, 0x1.bc8p+5f, -0x1.fcp+5f, 0x1.bc8p+5f, 0x0p+0f,
};
static const uint8_t q4_1_bytes[40] = {
    0x95, 0x22, 0x07, 0xb0, 0x5a, 0x8b, 0x29, 0x56, 0x38, 0x96, 0x5a, 0xbf, 0xa8, 0x97, 0x0c, 0x8b, 0xaa, 0xa6, 0x4a,
    0x8c, 0x3c, 0x48, 0xf0, 0xd3, 0x50, 0xbf, 0x48, 0xc7, 0x28, 0xe7, 0x88, 0x77, 0x98, 0x68, 0xa8, 0x57, 0xf8, 0x07,
    0xf9, 0x89,
};
static const float q4_1_floats[64] = {
    0x1.62p-9f, 0x1.fdcp-7f, -0x1.4ccp-7f, -0x1.8f2p-5f, -0x1.79p-6f, -0x1.8f2p-5f, 0x1.62p-9f, 0x1.1258p-4f,
    -0x1.79p-6f, -0x1.25dp-5f, 0x1.d18p-6f, 0x1.fdcp-7f, 0x1.62p-9f, -0x1.8f2p-5f, 0x1.62p-9f, 0x1.d18p-6f,
    -0x1.f87p-5f, -0x1.79p-6f, -0x1.9a3p-4f, -0x1.f87p-5f, -0x1.6588p-4f, -0x1.4ccp-7f, -0x1.f87p-5f, 0x1.fdcp-7f,
    0x1.62p-9f, -0x1.4ccp-7f, -0x1.01cp-3f, -0x1.79p-6f, 0x1.62p-9f, 0x1.62p-9f, -0x1.30ep-4f, -0x1.79p-6f,
    -0x1.fcp+5f, 0x1.fc4p+5f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.1p+2f,
    0x1.1p+2f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.97p+3f, 0x1.97p+3f, -0x1.528p+4f, 0x1.da8p+4f,
    -0x1.dap+4f, 0x1.31p+5f, -0x1.748p+5f, 0x1.b88p+5f, 0x1.1p+2f, -0x1.0ep+2f, 0x1.97p+3f, -0x1.96p+3f, 0x1.53p+4f,
    -0x1.528p+4f, 0x1.fc4p+5f, -0x1.fcp+5f, 0x1.fc4p+5f, 0x1.1p+2f,
};
static const uint8_t q8_0_bytes[68] = {
    0x0f, 0x14, 0x00, 0x0f, 0xf2, 0xd3, 0xe9, 0xce, 0x03, 0x44, 0xe7, 0xe1, 0x19, 0x12, 0x05, 0xd1, 0xff, 0x23, 0xbc,
    0xe9, 0xa0, 0xbf, 0xa3, 0xf4, 0xc0, 0x0e, 0x08, 0xf7, 0x81, 0xe5, 0xfe, 0x06, 0xb3, 0xe8, 0x00, 0x38, 0x81, 0x7f,
    0x01, 0xff, 0x02, 0xfe, 0x03, 0xfd, 0x00, 0x00, 0x01, 0xff, 0x09, 0xf8, 0x17, 0x19, 0xd7, 0x40, 0xc0, 0x50, 0xa1,
    0x6f, 0x10, 0xf0, 0x20, 0xe0, 0x30, 0xd0, 0x7e, 0x81, 0x7f, 0x02,
};
static const float q8_0_floats[64] = {
    0x0p+0f, 0x1.e708p-7f, -0x1.c69p-7f, -0x1.6d46p-5f, -0x1.7564p-6f, -0x1.95dcp-5f, 0x1.85ap-9f, 0x1.13fcp-4f,
    -0x1.95dcp-6f, -0x1.f744p-6f, 0x1.95dcp-6f, 0x1.2438p-6f, 0x1.44bp-8f, -0x1.7d82p-5f, -0x1.03cp-10f, 0x1.1c1ap-5f,
    -0x1.13fcp-4f, -0x1.7564p-6f, -0x1.85ap-4f, -0x1.07cfp-4f, -0x1.7973p-4f, -0x1.85ap-7f, -0x1.03cp-4f, 0x1.c69p-7f,
    0x1.03cp-7f, -0x1.2438p-7f, -0x1.01b88p-3f, -0x1.b654p-6f, -0x1.03cp-9f, 0x1.85ap-8f, -0x1.3883p-4f, -0x1.85ap-6f,
    -0x1.fcp+5f, 0x1.fcp+5f, 0x1p-1f, -0x1p-1f, 0x1p+0f, -0x1p+0f, 0x1.8p+0f, -0x1.8p+0f, 0x0p+0f, 0x0p+0f, 0x1p-1f,
    -0x1p-1f, 0x1.2p+2f, -0x1p+2f, 0x1.7p+3f, 0x1.9p+3f, -0x1.48p+4f, 0x1p+5f, -0x1p+5f, 0x1.4p+5f, -0x1.7cp+5f,
    0x1.bcp+5f, 0x1p+3f, -0x1p+3f, 0x1p+4f, -0x1p+4f, 0x1.8p+4f, -0x1.8p+4f, 0x1.f8p+5f, -0x1.fcp+5f, 0x1.fcp+5f,
    0x1p+0f,
};
static const uint8_t q5_0_bytes[44] = {
    0x4c, 0x22, 0xa7, 0x9b, 0xe1, 0x18, 0x54, 0x44, 0x41, 0x31, 0x7c, 0x93, 0x11, 0xf8, 0x5e, 0x04, 0x29, 0xb1, 0x9f,
    0x7e, 0xc0, 0xe1, 0x19, 0x9c, 0x56, 0xf6, 0x5a, 0x33, 0x22, 0xe7, 0x91, 0xb8, 0x80, 0xee, 0x99, 0x5e, 0x3f, 0x0d,
    0x30, 0x7d, 0x2f, 0xba, 0xf4, 0x00,
};
static const float q5_0_floats[64] = {
    0x1.93p-5f, 0x1.93p-5f, 0x1.93p-7f, -0x1.79dp-3f, -0x1.93p-5f, 0x1.2e4p-5f, -0x1.79dp-3f, 0x1.93p-4f, 0x1.60ap-3f,
    0x1.93p-5f, -0x1.60ap-4f, 0x1.93p-7f, 0x1.79dp-3f, -0x1.93p-6f, -0x1.93p-3f, 0x1.93p-7f, 0x1.f7cp-5f,
    -0x1.2e4p-3f, -0x1.2e4p-3f, -0x1.477p-3f, -0x1.c56p-4f, 0x1.c56p-4f, 0x1.93p-7f, 0x1.79dp-3f, -0x1.151p-3f,
    -0x1.93p-3f, -0x1.60ap-3f, 0x1.151p-3f, 0x1.c56p-4f, -0x1.c56p-4f, -0x1.93p-5f, -0x1.93p-6f, 0x1.cafp-5f,
    -0x1.cafp-6f, -0x1.064p-8f, 0x1.064p-5f, -0x0p+0f, 0x1.064p-7f, -0x1.2708p-5f, 0x1.064p-7f, 0x1.064p-8f,
    -0x1.aa28p-5f, -0x0p+0f, 0x1.896p-7f, -0x1.ebb8p-5f, -0x1.47dp-5f, -0x1.064p-6f, -0x0p+0f, 0x1.cafp-5f,
    -0x1.cafp-5f, 0x1.cafp-6f, -0x1.6898p-5f, -0x1.064p-5f, 0x1.064p-7f, -0x1.2708p-5f, 0x1.6898p-5f, -0x1.896p-7f,
    -0x0p+0f, 0x1.aa28p-5f, 0x1.2708p-5f, -0x1.064p-7f, -0x1.6898p-5f, 0x1.064p-8f, 0x1.064p-4f,
};
static const uint8_t q5_1_bytes[48] = {
    0x4c, 0x22, 0x14, 0xb2, 0x69, 0x3a, 0x17, 0x9e, 0x0d, 0x02, 0x7e, 0xd4, 0xe5, 0x8b, 0xe7, 0xa9, 0xeb, 0xc2, 0x8a,
    0x27, 0x1d, 0x43, 0xa7, 0x88, 0x19, 0x1c, 0xa8, 0x22, 0x55, 0x63, 0x81, 0x44, 0xeb, 0x66, 0x03, 0xf7, 0xb2, 0x72,
    0x5d, 0xe1, 0x1f, 0xe6, 0xac, 0x2f, 0x88, 0xa6, 0x81, 0x82,
};
static const float q5_1_floats[64] = {
    0x1.557p-3f, -0x1.52ap-3f, -0x1.23p-6f, 0x1.cbp-5f, -0x1.071p-3f, 0x1.231p-3f, 0x1.7cap-4f, -0x1.44ap-4f,
    -0x1.bfcp-5f, 0x1.018p-5f, -0x1.124p-4f, 0x1.7cap-4f, 0x1.557p-3f, 0x1.664p-5f, -0x1.a96p-4f, -0x1.77p-4f,
    0x1.cp-8f, 0x1.cp-8f, 0x1.7cap-4f, -0x1.ec8p-6f, 0x1.6eap-3f, -0x1.77p-4f, -0x1.23p-6f, -0x1.124p-4f, -0x1.23p-6f,
    0x1.3c4p-3f, 0x1.afp-4f, 0x1.018p-5f, 0x1.398p-6f, -0x1.204p-3f, -0x1.124p-4f, 0x1.afp-4f, 0x1.efccp-4f,
    0x1.2f3p-5f, 0x1.6cacp-4f, 0x1.4ff8p-5f, 0x1.5c48p-4f, 0x1.582p-6f, 0x1.084ap-3f, 0x1.169p-6f, 0x1.18aep-3f,
    0x1.9dd8p-4f, 0x1.f3ep-5f, 0x1.2b1cp-4f, 0x1.70cp-5f, 0x1.9dd8p-4f, 0x1.4be4p-4f, 0x1.582p-6f, 0x1.107cp-3f,
    0x1.2f3p-5f, 0x1.aap-7f, 0x1.2b1cp-4f, 0x1.d318p-5f, 0x1.4ff8p-5f, 0x1.0e68p-5f, 0x1.107cp-3f, 0x1.169p-6f,
    0x1.1ab8p-4f, 0x1.df68p-4f, 0x1.582p-6f, 0x1.70cp-5f, 0x1.b25p-5f, 0x1.beap-4f, 0x1.70cp-5f,
};
static const uint8_t q4_k_bytes[144] = {
    0x81, 0x14, 0xbc, 0x11, 0x86, 0x97, 0x93, 0xf0, 0xaa, 0xd6, 0xde, 0xd8, 0x11, 0x6e, 0x3a, 0xb5, 0x16, 0x81, 0xc4,
    0xa3, 0x74, 0xfe, 0xc7, 0x0a, 0x68, 0xb3, 0xe4, 0xbd, 0xc9, 0x2b, 0x38, 0x79, 0x87, 0x41, 0x6c, 0x17, 0xec, 0x90,
    0x96, 0x3e, 0xc7, 0x66, 0x88, 0x8a, 0xb4, 0xb8, 0x0e, 0xba, 0x7c, 0x5c, 0xfd, 0x81, 0x12, 0x1b, 0xea, 0x9c, 0xee,
    0x18, 0x10, 0xdf, 0xd5, 0x16, 0x9f, 0xaf, 0x26, 0xcd, 0x7b, 0x5c, 0x30, 0xc8, 0xab, 0xa4, 0x4d, 0x97, 0x22, 0x99,
    0xe8, 0xc7, 0xb4, 0x1b, 0x9a, 0x1d, 0x2b, 0x0f, 0x18, 0x06, 0x00, 0xa9, 0x74, 0xd6, 0x3b, 0x63, 0x32, 0x20, 0x2c,
    0x99, 0x8e, 0x82, 0xb2, 0x52, 0x2c, 0x49, 0xc4, 0x39, 0x4c, 0x7d, 0x73, 0x26, 0x5b, 0x6a, 0xaf, 0x61, 0xb2, 0x88,
    0xfb, 0xd0, 0xae, 0xcf, 0xa7, 0x66, 0x61, 0x62, 0x23, 0x61, 0x1e, 0x76, 0x4c, 0x93, 0xaa, 0x38, 0x8f, 0xfa, 0xbd,
    0x0a, 0x6a, 0x64, 0x12, 0xb2, 0x09, 0x97, 0x1e, 0x2d, 0x82, 0x70,
};
static const float q4_k_floats[256] = {
    0x1.4dcp-7f, -0x1.7598p-6f, -0x1.8a8p-9f, -0x1.3adp-7f, -0x1.8a8p-9f, 0x1.01e8p-4f, 0x1.12f8p-6f, 0x1.2bap-5f,
    0x1.7f1p-6f, -0x1.3adp-7f, -0x1.8a8p-9f, 0x1.cdc4p-5f, 0x1.eb28p-6f, 0x1.61acp-5f, 0x1.7f1p-6f, 0x1.eb28p-6f,
    0x1.12f8p-6f, -0x1.7598p-6f, 0x1.97b8p-5f, 0x1.12f8p-6f, 0x1.97b8p-5f, -0x1.e1bp-6f, 0x1.4dcp-7f, 0x1.01e8p-4f,
    0x1.12f8p-6f, 0x1.4dcp-7f, 0x1.7f1p-6f, 0x1.2bap-5f, -0x1.8a8p-9f, 0x1.7f1p-6f, 0x1.01e8p-4f, 0x1.2bap-5f,
    0x1.4418p-7f, 0x1.7ed2p-3f, 0x1.27p-2f, 0x1.e669p-3f, 0x1.4b068p-3f, 0x1.74b14p-2f, 0x1.27p-2f, -0x1.f8ap-7f,
    0x1.173bp-3f, 0x1.0d1a4p-2f, 0x1.5acb8p-2f, 0x1.0d1a4p-2f, 0x1.27p-2f, 0x1.2034p-5f, 0x1.ef62p-5f, 0x1.4b068p-3f,
    0x1.7ed2p-3f, 0x1.5f48p-4f, 0x1.173bp-3f, 0x1.4418p-7f, 0x1.5acb8p-2f, 0x1.b29d8p-3f, 0x1.b29d8p-3f, 0x1.ef62p-5f,
    0x1.27p-2f, 0x1.173bp-3f, 0x1.7ed2p-3f, 0x1.7ed2p-3f, 0x1.0d1a4p-2f, 0x1.0d1a4p-2f, -0x1.f8ap-7f, 0x1.0d1a4p-2f,
    0x1.d67p-3f, 0x1.d67p-3f, 0x1.009ccp-2f, -0x1.c4p-14f, 0x1.5488p-6f, 0x1.aba68p-3f, 0x1.80ddp-3f, 0x1.d67p-3f,
    0x1.16018p-2f, 0x1.2b4ap-3f, -0x1.581p-6f, 0x1.2b664p-2f, 0x1.55dbp-4f, 0x1.ab6ep-4f, 0x1.2b664p-2f,
    0x1.2b664p-2f, 0x1.ab6ep-4f, 0x1.009ccp-2f, 0x1.aba68p-3f, 0x1.d67p-3f, -0x1.581p-6f, 0x1.2b4ap-3f, 0x1.aba68p-3f,
    0x1.0048p-4f, 0x1.009ccp-2f, 0x1.00808p-3f, 0x1.5488p-6f, 0x1.56138p-3f, 0x1.2b4ap-3f, 0x1.00808p-3f,
    0x1.0048p-4f, 0x1.aba68p-3f, 0x1.692p-2f, 0x1.fa1p-3f, 0x1.8ccp-1f, 0x1.9f2cp-2f, 0x1.26cp-5f, 0x1.26cp-5f,
    0x1.71bap-1f, 0x1.d538p-2f, 0x1.71bap-1f, 0x1.26cp-5f, 0x1.26cp-5f, 0x1.56b4p-1f, 0x1.56b4p-1f, 0x1.26cp-5f,
    0x1.d538p-2f, 0x1.05a2p-1f, 0x1.6b9p-4f, 0x1.3baep-1f, 0x1.692p-2f, 0x1.fa1p-3f, 0x1.21ep-3f, 0x1.3baep-1f,
    0x1.05a2p-1f, 0x1.05a2p-1f, 0x1.8df8p-3f, 0x1.d538p-2f, 0x1.6b9p-4f, 0x1.d538p-2f, 0x1.71bap-1f, 0x1.3baep-1f,
    0x1.20a8p-1f, 0x1.26cp-5f, 0x1.5bebp-2f, 0x1.cb63cp-2f, 0x1.81134p-2f, 0x1.0ada2p-1f, 0x1.119a8p-2f, 0x1.8e94p-3f,
    -0x1.7a78p-6f, 0x1.36c2cp-2f, 0x1.f3e6p-4f, 0x1.8e94p-3f, 0x1.81134p-2f, 0x1.5f45p-4f, 0x1.9548p-5f,
    -0x1.7a78p-6f, 0x1.a63b8p-2f, 0x1.36c2cp-2f, 0x1.f08cp-2f, 0x1.9548p-5f, 0x1.9548p-5f, 0x1.9548p-5f,
    0x1.a63b8p-2f, 0x1.36c2cp-2f, 0x1.f3e6p-4f, 0x1.36c2cp-2f, 0x1.a63b8p-2f, 0x1.cb63cp-2f, 0x1.5f45p-4f,
    0x1.8e94p-3f, 0x1.81134p-2f, 0x1.5bebp-2f, 0x1.0ada2p-1f, 0x1.b018p-7f, 0x1.ab728p-2f, 0x1.a2dp-7f, 0x1.0388p-4f,
    -0x1.35a8p-5f, 0x1.a2dp-7f, -0x1.35a8p-5f, -0x1.35a8p-5f, 0x1.df3ep-2f, 0x1.43db8p-2f, 0x1.3d504p-1f,
    0x1.d2b6p-4f, 0x1.101p-2f, 0x1.d2b6p-4f, 0x1.0388p-4f, 0x1.0388p-4f, 0x1.ab728p-2f, 0x1.77a7p-2f, 0x1.77a7p-2f,
    0x1.0984cp-1f, 0x1.b889p-3f, 0x1.0388p-4f, 0x1.50f2p-3f, 0x1.236a8p-1f, 0x1.d2b6p-4f, 0x1.50f2p-3f, 0x1.43db8p-2f,
    0x1.43db8p-2f, 0x1.0388p-4f, 0x1.b889p-3f, 0x1.101p-2f, 0x1.df3ep-2f, 0x1.101p-2f, 0x1.d034p-5f, 0x1.55c58p-2f,
    0x1.e3a5p-2f, -0x1.2474p-5f, 0x1.38c24p-1f, 0x1.50678p-1f, 0x1.267bp-2f, 0x1.ee61p-3f, 0x1.578p-7f, 0x1.d034p-5f,
    0x1.a544p-4f, 0x1.578p-7f, 0x1.38c24p-1f, 0x1.ee61p-3f, 0x1.0977cp-1f, 0x1.a544p-4f, 0x1.b45a8p-2f, 0x1.55c58p-2f,
    0x1.50678p-1f, 0x1.b45a8p-2f, 0x1.211dp-1f, 0x1.b45a8p-2f, 0x1.b45a8p-2f, 0x1.3137p-3f, 0x1.d034p-5f,
    0x1.d034p-5f, 0x1.851p-2f, 0x1.267bp-2f, 0x1.38c24p-1f, 0x1.211dp-1f, 0x1.d034p-5f, -0x1.2474p-5f, 0x1.3313ap-1f,
    0x1.b31f8p-2f, 0x1.aa6e2p-1f, 0x1.6ec0ep-1f, 0x1.153dp-1f, 0x1.50ea4p-1f, 0x1.153dp-1f, 0x1.3bc5p-2f,
    0x1.3bc5p-2f, 0x1.3bc5p-2f, 0x1.344p-4f, 0x1.3bc5p-2f, 0x1.162cp-6f, 0x1.77724p-2f, 0x1.88d5p-3f, 0x1.eecccp-2f,
    0x1.153dp-1f, 0x1.117a8p-3f, 0x1.b31f8p-2f, 0x1.aa6e2p-1f, 0x1.3313ap-1f, -0x1.5254p-5f, 0x1.3bc5p-2f,
    0x1.3bc5p-2f, 0x1.162cp-6f, 0x1.3313ap-1f, -0x1.5254p-5f, 0x1.eecccp-2f, 0x1.162cp-6f, 0x1.344p-4f, 0x1.b31f8p-2f,
    0x1.77724p-2f,
};
static const uint8_t q5_k_bytes[176] = {
    0x19, 0x10, 0x5f, 0x13, 0x76, 0xf7, 0xe4, 0x9a, 0xb8, 0xfa, 0x19, 0x72, 0x71, 0xbe, 0x53, 0xa3, 0x44, 0x2b, 0x12,
    0x8c, 0xda, 0xd7, 0x2b, 0xad, 0x0f, 0x8a, 0xee, 0xf4, 0x2a, 0x0b, 0x9a, 0x26, 0xd7, 0x4f, 0xc7, 0x8f, 0x25, 0x62,
    0xb8, 0x70, 0x10, 0x97, 0xa5, 0x5b, 0x55, 0x10, 0x54, 0x3d, 0x27, 0xed, 0x60, 0x0d, 0xe3, 0x20, 0x0a, 0x67, 0x49,
    0x30, 0x7f, 0xd3, 0x78, 0x99, 0xc1, 0x18, 0x81, 0x9a, 0xf6, 0x67, 0x43, 0x94, 0xc3, 0xf7, 0xaa, 0x5f, 0x93, 0xf3,
    0x2c, 0x81, 0x0a, 0x37, 0xca, 0x7b, 0xf1, 0x01, 0x3c, 0xcd, 0xf8, 0xab, 0x8a, 0xb4, 0xa6, 0x03, 0x99, 0x54, 0xe8,
    0x4c, 0xbe, 0x3b, 0x3f, 0x7f, 0x11, 0x83, 0xc3, 0xdf, 0x83, 0x75, 0xc5, 0x17, 0xb4, 0xe7, 0x86, 0xa9, 0xaa, 0xdf,
    0x74, 0x88, 0xf8, 0x92, 0xb1, 0x21, 0x91, 0x38, 0x7a, 0xd8, 0x6a, 0xca, 0x56, 0xd8, 0x53, 0x1c, 0x92, 0x7b, 0x93,
    0x1f, 0xe8, 0xf1, 0x6e, 0x79, 0x5b, 0x9b, 0x33, 0x17, 0x67, 0xe7, 0x12, 0xdb, 0xe8, 0xf5, 0x33, 0x1d, 0xd9, 0x91,
    0x7f, 0x01, 0xe6, 0x47, 0x10, 0xdd, 0x3c, 0x25, 0xf4, 0xd2, 0x16, 0x90, 0xa0, 0x49, 0x45, 0x31, 0x35, 0x55, 0x0e,
    0xc0, 0x19, 0x3a, 0x8b, 0xed,
};
static const float q5_k_floats[256] = {
    0x1.1c088p-3f, 0x1.77426p-1f, -0x1.9cc8p-5f, 0x1.33f8cp-2f, 0x1.f614p-6f, 0x1.86f3p-2f, 0x1.4dc54p-1f,
    0x1.24482p-1f, 0x1.3ff0ep-1f, -0x1.9cc8p-5f, 0x1.6b4a4p-2f, 0x1.f614p-6f, 0x1.535ap-3f, 0x1.3ff0ep-1f,
    -0x1.7f04p-6f, 0x1.535ap-3f, 0x1.a29bcp-2f, 0x1.4dc54p-1f, 0x1.1673cp-1f, 0x1.24482p-1f, 0x1.d9ed4p-2f,
    0x1.d85p-5f, 0x1.f614p-6f, 0x1.1c088p-3f, 0x1.c1fdp-3f, 0x1.92eb2p-1f, 0x1.d9ed4p-2f, 0x1.d9ed4p-2f, 0x1.696ep-1f,
    -0x1.7f04p-6f, 0x1.c1fdp-3f, 0x1.24482p-1f, 0x1.738p-9f, 0x1.8bd9cp-1f, 0x1.1b2a4p-1f, -0x1.ab86p-5f,
    0x1.8bd9cp-1f, 0x1.c5a5p-2f, 0x1.8d4d4p-2f, 0x1.ce5ap-4f, 0x1.fdfccp-2f, 0x1.e1d0ep-2f, 0x1.29403p-1f,
    0x1.38c9ap-2f, 0x1.29403p-1f, 0x1.456c1p-1f, 0x1.6fadep-1f, 0x1.a9792p-2f, 0x1.37562p-1f, 0x1.456c1p-1f,
    0x1.99efbp-1f, 0x1.1b2a4p-1f, 0x1.d9f6p-5f, 0x1.456c1p-1f, 0x1.1c9dcp-2f, 0x1.71216p-2f, 0x1.c88cp-3f,
    0x1.0d145p-1f, 0x1.90344p-3f, 0x1.99efbp-1f, 0x1.738p-9f, 0x1.57dc8p-3f, -0x1.ab86p-5f, 0x1.f12ep-6f,
    0x1.c8642p-2f, 0x1.67994p-3f, -0x1.2618p-8f, 0x1.226fap-2f, 0x1.8c7a4p-3f, 0x1.ffb5ap-2f, 0x1.f1ec8p-4f,
    0x1.dad4ap-2f, 0x1.c8642p-2f, 0x1.95c9p-5f, 0x1.7ea22p-2f, 0x1.4750ap-2f, 0x1.1dd74p-3f, 0x1.95c9p-5f,
    0x1.f1ec8p-4f, 0x1.ed452p-2f, 0x1.09131p-1f, 0x1.dad4ap-2f, 0x1.124b5p-1f, 0x1.124b5p-1f, 0x1.226fap-2f,
    0x1.0245p-5f, 0x1.0245p-5f, 0x1.fb1d4p-3f, 0x1.0245p-5f, 0x1.6c31ap-2f, 0x1.6c31ap-2f, 0x1.a82a8p-4f,
    0x1.59c12p-2f, 0x1.a82a8p-4f, 0x1.7ea22p-2f, 0x1.b5f3ap-2f, 0x1.c6f5p-4f, 0x1.043bp-2f, 0x1.3362p-3f,
    0x1.4e048p-3f, 0x1.9decp-3f, 0x1.c6f5p-4f, 0x1.6ec5p-2f, 0x1.2c2ecp-2f, 0x1.118c4p-2f, 0x1.398p-2f, 0x1.2c2ecp-2f,
    -0x1.708ep-5f, 0x1.1edd8p-2f, 0x1.d331p-3f, 0x1.6173cp-2f, 0x1.ccdp-8f, 0x1.91bp-4f, 0x1.9decp-3f, -0x1.878p-8f,
    0x1.043bp-2f, -0x1.0604p-5f, 0x1.e3c2p-5f, 0x1.46d14p-2f, 0x1.fc3ap-4f, 0x1.e3c2p-5f, 0x1.7938p-5f, 0x1.c6f5p-4f,
    0x1.68a7p-3f, 0x1.91bp-4f, 0x1.18bf8p-3f, 0x1.e3c2p-5f, 0x1.2c2ecp-2f, 0x1.9921p-5f, 0x1.7ab7p-4f, 0x1.146ecp-3f,
    0x1.0dcfp-5f, 0x1.5a17cp-3f, 0x1.e3348p-4f, -0x1.b3ap-6f, -0x1.b3ap-6f, -0x1.b3ap-6f, 0x1.0dcfp-5f, 0x1.9921p-5f,
    0x1.5a17cp-3f, 0x1.9921p-5f, 0x1.9921p-5f, 0x1.37434p-3f, 0x1.0dcfp-5f, 0x1.03048p-3f, 0x1.12398p-4f,
    -0x1.284ep-6f, 0x1.decap-5f, -0x1.39f8p-7f, 0x1.7ab7p-4f, 0x1.5a17cp-3f, 0x1.c06p-4f, 0x1.c2954p-3f, 0x1.6b82p-3f,
    0x1.decap-5f, 0x1.8e568p-3f, 0x1.03048p-3f, 0x1.48ad8p-3f, 0x1.48ad8p-3f, 0x1.48ad8p-3f, 0x1.0734ep-2f,
    0x1.b14b1p-1f, 0x1.4fdf4p-3f, 0x1.8f62cp-3f, 0x1.a5fdap-2f, 0x1.cee64p-3f, 0x1.91895p-1f, 0x1.02a17p-1f,
    0x1.cee64p-3f, 0x1.4745p-5f, 0x1.5205dp-1f, 0x1.b14b1p-1f, 0x1.4224fp-1f, 0x1.46b86p-2f, 0x1.a1b08p-4f,
    0x1.b14b1p-1f, 0x1.a1b08p-4f, -0x1.69aep-6f, 0x1.cee64p-3f, 0x1.4fdf4p-3f, 0x1.71c79p-1f, 0x1.e5812p-2f,
    0x1.c12bfp-1f, 0x1.d10cdp-1f, 0x1.105bcp-3f, 0x1.4fdf4p-3f, 0x1.32441p-1f, 0x1.cee64p-3f, 0x1.4745p-5f,
    -0x1.69aep-6f, 0x1.105bcp-3f, 0x1.c12bfp-1f, 0x1.d1996p-2f, 0x1.1abdcp-2f, 0x1.98bf4p-3f, 0x1.f806p-4f,
    0x1.ebb8cp-2f, 0x1.78794p-1f, 0x1.ccfep-3f, 0x1.584p-6f, 0x1.833b4p-2f, 0x1.584p-6f, 0x1.1d0b7p-1f, 0x1.2a1b2p-1f,
    -0x1.26d8p-8f, 0x1.4efc8p-2f, 0x1.34dd2p-2f, 0x1.f806p-4f, 0x1.02ec1p-1f, 0x1.d1996p-2f, 0x1.1d0b7p-1f,
    -0x1.26d8p-8f, -0x1.26d8p-8f, 0x1.443a8p-1f, 0x1.f806p-4f, 0x1.b77ap-2f, 0x1.f806p-4f, 0x1.f806p-4f,
    0x1.691bep-2f, 0x1.9d5aap-2f, 0x1.443a8p-1f, 0x1.009e6p-2f, 0x1.5e59ep-1f, 0x1.4efc8p-2f, -0x1.81d8p-8f,
    0x1.a2324p-3f, 0x1.c60dp-3f, 0x1.09e4fp-1f, 0x1.3ca96p-2f, 0x1.18ceap-2f, 0x1.a2324p-3f, 0x1.a839ap-2f,
    0x1.96238p-4f, 0x1.06e14p-2f, 0x1.00ee4p-1f, 0x1.4e96cp-2f, -0x1.81d8p-8f, 0x1.a2324p-3f, 0x1.3ca96p-2f,
    0x1.7ccp-7f, 0x1.09e4fp-1f, 0x1.a2324p-3f, 0x1.18ceap-2f, 0x1.a839ap-2f, 0x1.36a2p-3f, 0x1.7e06p-5f,
    0x1.4e96cp-2f, 0x1.dd36p-6f, 0x1.dd36p-6f, 0x1.60842p-2f, 0x1.06e14p-2f, 0x1.7e578p-3f, -0x1.81d8p-8f,
    0x1.dd36p-6f, 0x1.ddd9p-4f, 0x1.c60dp-3f,
};
static const uint8_t q6_k_bytes[210] = {
    0x17, 0x83, 0xd5, 0x3e, 0xc9, 0x44, 0x65, 0x8d, 0x1d, 0x28, 0x96, 0x0c, 0x44, 0xb0, 0x38, 0x2e, 0x93, 0x43, 0x8e,
    0x60, 0x78, 0x8d, 0x51, 0xe2, 0x79, 0xa1, 0x31, 0xf8, 0x13, 0x0b, 0x3e, 0xa4, 0xbd, 0x2f, 0x5d, 0x95, 0xe5, 0x7b,
    0xd7, 0x91, 0x43, 0x6d, 0x84, 0x0f, 0x4e, 0x66, 0x54, 0x60, 0x81, 0x35, 0xbb, 0xfb, 0x88, 0x5d, 0x34, 0x69, 0x59,
    0xa4, 0x9b, 0x36, 0x40, 0x2a, 0x4f, 0x3d, 0xcc, 0x48, 0x9f, 0xb6, 0x51, 0x1f, 0xbe, 0x09, 0xe5, 0xd7, 0x2b, 0xf8,
    0x34, 0xe0, 0x4f, 0xe0, 0x28, 0xca, 0x49, 0x91, 0xe0, 0x2a, 0xbd, 0x77, 0x27, 0x9f, 0xed, 0xc2, 0x06, 0xd2, 0x31,
    0x8c, 0xa8, 0xb8, 0x28, 0x7a, 0x6f, 0x4b, 0x79, 0x52, 0x09, 0x57, 0x5d, 0x72, 0x77, 0xd4, 0x56, 0xc0, 0xf6, 0xe8,
    0x1a, 0x0e, 0x58, 0x4d, 0x73, 0x06, 0x60, 0xf5, 0x6b, 0xb8, 0xb5, 0x88, 0x47, 0x5f, 0x70, 0x66, 0xc1, 0xcd, 0x71,
    0x09, 0xc5, 0x07, 0x9a, 0x93, 0x3e, 0xe8, 0x57, 0xdb, 0x75, 0x1f, 0xf2, 0x23, 0x72, 0x6a, 0xd9, 0x06, 0x97, 0xf7,
    0x49, 0xf7, 0xc6, 0x1b, 0xd8, 0x01, 0x63, 0xa8, 0xc9, 0xa3, 0x56, 0xba, 0x91, 0xd7, 0x9f, 0x6d, 0x24, 0xee, 0x3a,
    0x14, 0xeb, 0xd4, 0x13, 0x86, 0xd8, 0xfa, 0xef, 0x6e, 0x9e, 0x6c, 0x70, 0xdf, 0x41, 0xdb, 0xa9, 0xae, 0xb5, 0x30,
    0x1e, 0x58, 0x24, 0xb7, 0xdb, 0x0e, 0x50, 0x4f, 0x1d, 0x97, 0x06, 0x86, 0x93, 0x47, 0x68, 0xf0, 0x05, 0xaf, 0xf7,
    0x01,
};
static const float q6_k_floats[256] = {
    -0x1.ba17p-6f, 0x1.a868p-9f, -0x1.850ap-7f, -0x1.1afp-9f, -0x1.ef24p-8f, -0x1.a868p-7f, -0x1.850ap-7f,
    0x1.00698p-5f, 0x1.cbc6p-7f, 0x1.a868p-6f, 0x1.a868p-8f, -0x1.61acp-6f, 0x1.61acp-6f, 0x1.1afp-6f, -0x1.1afp-7f,
    0x1.0941p-5f, -0x1.ae4dp-8f, -0x1.54a7ap-5f, -0x1.f6048p-6f, -0x0p+0f, 0x1.1edep-6f, -0x1.d228cp-6f,
    -0x1.30cbep-5f, -0x1.42b9cp-5f, 0x1.f6048p-7f, -0x1.30cbep-5f, -0x1.1edep-9f, -0x1.ae4dp-5f, 0x1.03f93p-4f,
    0x1.66958p-7f, -0x1.0cf02p-4f, 0x1.f6048p-5f, 0x1.59524p-6f, 0x1.22ccp-10f, 0x1.59524p-6f, -0x1.7dabcp-6f,
    0x1.eab84p-6f, -0x1.8fd88p-7f, 0x1.47258p-7f, 0x1.109f4p-6f, -0x1.b432p-9f, 0x1.59524p-6f, -0x1.6b7fp-6f,
    -0x1.109f4p-6f, 0x1.22ccp-9f, -0x1.b432p-8f, 0x1.b432p-7f, -0x1.22ccp-6f, -0x1.aa5fp-7f, -0x1.735bp-7f,
    -0x1.20d5p-7f, 0x1.2e96p-8f, 0x1.b82p-9f, -0x1.4a18p-10f, -0x1.4a18p-8f, -0x1.811cp-9f, 0x1.ef24p-9f,
    -0x1.4a18p-8f, -0x1.1314p-9f, 0x1.4a18p-9f, 0x0p+0f, -0x1.2e96p-7f, -0x1.d3a2p-8f, 0x1.659ap-8f, 0x1.4e06p-5f,
    0x1.3a6p-6f, -0x1.7552p-5f, -0x1.1ce7p-4f, 0x1.1314p-4f, -0x1.1314p-4f, -0x1.fedcp-5f, -0x1.d79p-5f,
    -0x1.26bap-5f, -0x1.1314p-5f, 0x1.eb36p-5f, 0x0p+0f, -0x1.d79p-6f, -0x1.88f8p-7f, 0x1.7552p-5f, -0x1.1314p-5f,
    0x1.e5122p-5f, 0x1.3672p-7f, 0x1.d1abp-5f, 0x1.d1abp-7f, -0x1.5d404p-6f, -0x1.d1abp-5f, -0x1.aadccp-6f,
    0x1.230aep-4f, -0x1.e5122p-5f, 0x1.f8794p-5f, -0x1.19575p-4f, -0x1.3672p-9f, -0x1.230aep-5f, -0x1.3672p-4f,
    0x1.d1abp-8f, 0x1.840e8p-6f, -0x1.1ce7p-8f, -0x1.8eddp-7f, 0x1.2b25cp-6f, 0x1.6420cp-6f, -0x1.c7d8p-10f,
    -0x1.6420cp-6f, 0x1.9d1bcp-6f, -0x1.47a34p-6f, 0x1.c7d8p-9f, 0x1.55e2p-8f, -0x1.55e2p-6f, 0x1.c7d8p-7f,
    -0x1.55e2p-7f, 0x1.39648p-6f, -0x1.39648p-7f, -0x1.725f8p-6f, -0x1.35768p-4f, 0x1.75ef3p-4f, 0x1.01e2cp-6f,
    0x1.9c9ep-9f, -0x1.35768p-4f, 0x1.5c255p-4f, -0x1.35768p-7f, -0x1.1bacap-4f, 0x1.1bacap-5f, -0x1.4f406p-4f,
    -0x1.425b7p-4f, 0x1.75ef3p-4f, -0x1.01e2cp-4f, 0x1.82d42p-4f, 0x1.35768p-5f, -0x1.35768p-7f, -0x1.794p-11f,
    0x1.1afp-8f, 0x1.61acp-9f, 0x1.1afp-10f, -0x1.61acp-9f, 0x1.6d76p-8f, 0x1.61acp-8f, -0x1.4a18p-10f, -0x1.3e4ep-8f,
    0x1.4a18p-10f, 0x1.035cp-9f, -0x1.1afp-8f, 0x1.d79p-9f, -0x1.794p-8f, 0x1.6d76p-8f, 0x0p+0f, 0x1.6791p-4f,
    -0x1.2ba38p-5f, -0x1.768c6p-4f, -0x1.df6cp-9f, -0x0p+0f, 0x1.499a4p-4f, 0x1.1ca82p-4f, -0x1.5895ap-4f,
    0x1.0daccp-5f, -0x1.d070ap-4f, 0x1.6791p-7f, -0x1.df6cp-8f, 0x1.2ba38p-5f, 0x1.c1754p-4f, -0x1.df6cp-9f,
    0x1.2ba38p-4f, -0x1.ac56p-6f, 0x1.41408p-4f, 0x1.ac56p-6f, -0x1.0bb5cp-5f, 0x1.c71b6p-5f, 0x1.0bb5cp-6f,
    -0x1.4ea33p-4f, -0x1.e1e0cp-5f, 0x1.76cb4p-6f, -0x1.33dddp-4f, -0x1.5c05ep-5f, 0x1.76cb4p-5f, -0x1.76cb4p-6f,
    0x1.41408p-5f, 0x1.5c05ep-4f, 0x1.ac56p-5f, 0x1.a283p-7f, 0x1.1702p-6f, 0x1.c5634p-5f, 0x1.0591ep-4f,
    0x1.a283p-5f, 0x1.f9b3ap-5f, -0x1.f9b3ap-5f, 0x1.7fa2cp-5f, -0x1.1702p-4f, 0x1.5cc28p-7f, 0x1.7fa2cp-6f,
    0x1.a283p-5f, -0x1.7fa2cp-6f, -0x1.a283p-5f, 0x1.9112ep-5f, 0x1.0591ep-5f, -0x1.fedcp-5f, 0x1.98bp-7f,
    -0x1.659ap-6f, 0x1.58d48p-4f, -0x1.18f9p-5f, -0x1.7f25p-5f, -0x1.fedcp-7f, 0x0p+0f, 0x1.659ap-5f, 0x1.4c0fp-5f,
    0x1.cbc6p-5f, -0x1.98bp-9f, 0x1.3284p-7f, -0x1.98bp-8f, -0x1.3284p-5f, -0x1.cbc6p-5f, 0x1.b82p-8f, -0x1.b82p-7f,
    -0x1.f7p-10f, -0x1.1afp-8f, 0x1.f7p-11f, -0x1.f7p-11f, -0x1.a868p-7f, 0x1.1afp-8f, 0x1.d79p-7f, 0x1.b82p-9f,
    -0x1.b82p-8f, -0x1.794p-8f, -0x1.f7p-8f, -0x1.c7d8p-7f, 0x1.98bp-8f, 0x1.f7p-9f, 0x1.fedcp-9f, 0x1.b044p-10f,
    -0x1.1314p-9f, 0x1.1314p-10f, 0x1.d79p-11f, 0x1.88f8p-9f, 0x1.1314p-10f, -0x1.b044p-10f, -0x1.3a6p-8f,
    0x1.9c9ep-9f, -0x1.0941p-8f, -0x1.eb36p-9f, 0x1.c3eap-9f, 0x1.1ce7p-8f, -0x1.0941p-8f, 0x1.d79p-10f,
    -0x1.345b9p-4f, -0x1.2a692p-4f, -0x1.5232ep-5f, 0x1.3e4ep-5f, -0x1.8de18p-7f, 0x1.dd75p-6f, 0x1.6617cp-6f,
    -0x1.3e4ep-5f, 0x1.8de18p-6f, -0x1.345b9p-4f, -0x1.dd75p-7f, -0x1.b5ab4p-6f, -0x1.b5ab4p-6f, 0x1.dd75p-5f,
    0x1.16844p-4f, 0x1.b5ab4p-6f,
};
/* clang-format on */

static const enum drllm_format all_formats[] = {
    DRLLM_FORMAT_F32,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1,
    DRLLM_FORMAT_Q5_0, DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q5_K,
    DRLLM_FORMAT_Q6_K, DRLLM_FORMAT_I8,   DRLLM_FORMAT_Q8C,  DRLLM_FORMAT_QB4W,
};
static const enum drllm_format writable_formats[] = {
    DRLLM_FORMAT_F32, DRLLM_FORMAT_F16, DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
};
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static const float infinity = (float)INFINITY;

static bool is_writable(enum drllm_format format) {
    for (size_t i = 0; i < LENGTH(writable_formats); i++) {
        if (writable_formats[i] == format) {
            return true;
        }
    }
    return false;
}

static uint32_t next_random(uint32_t *state) { /* xorshift32 */
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Roughly normal, standard deviation 1. */
static float random_weight(uint32_t *state) {
    float sum = 0.0f;
    for (int i = 0; i < 12; i++) {
        sum += (float)(next_random(state) >> 8) * 0x1p-24f;
    }
    return sum - 6.0f;
}

/* Of exactly this size, so that a sanitizer sees each byte too many; filled with what no test expects. */
static void *allocate(size_t bytes) {
    void *memory = malloc(bytes != 0 ? bytes : 1);
    assert_non_null(memory);
    memset(memory, 0xa5, bytes);
    return memory;
}

static void assert_same_floats(const float *got, const float *expected, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (drllm_f32_to_bits(got[i]) != drllm_f32_to_bits(expected[i])) {
            fail_msg("weight %zu: %a instead of %a", i, (double)got[i], (double)expected[i]);
        }
    }
}

static void test_names(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTH(all_formats); i++) {
        const uint32_t number = (uint32_t)all_formats[i];
        const struct drllm_format_traits *by_name = drllm_format_find_name(drllm_format_name(number));
        assert_non_null(by_name);
        assert_int_equal(by_name->format, number);
        assert_string_equal(by_name->name, drllm_format_name(number));
        /* Our own numbers are none that a file may use. */
        assert_ptr_equal(drllm_format_find(number), by_name->block_bytes != 0 ? by_name : NULL);
        assert_int_equal(by_name->block_bytes == 0, number >= 1000);
    }
    assert_null(drllm_format_find_name(""));
    assert_null(drllm_format_find_name("q4"));
    assert_null(drllm_format_find_name("Q4_1"));
    assert_null(drllm_format_find_name("q2_k")); /* a name, but no format of ours */

    static const struct {
        uint32_t type;
        const char *name;
    } not_read[] = {
        {4, "q4_2"},     {5, "q4_3"},        {9, "q8_1"},
        {10, "q2_k"},    {11, "q3_k"},       {15, "q8_k"},
        {16, "iq2_xxs"}, {17, "iq2_xs"},     {18, "iq3_xxs"},
        {19, "iq1_s"},   {20, "iq4_nl"},     {21, "iq3_s"},
        {22, "iq2_s"},   {23, "iq4_xs"},     {25, "i16"},
        {26, "i32"},     {27, "i64"},        {28, "f64"},
        {29, "iq1_m"},   {31, "q4_0_4x4"},   {34, "tq1_0"},
        {35, "tq2_0"},   {38, "iq4_nl_8x8"}, {39, "mxfp4"},
        {99, "unknown"}, {1002, "unknown"},  {UINT32_MAX, "unknown"},
    };
    for (size_t i = 0; i < LENGTH(not_read); i++) {
        assert_null(drllm_format_find(not_read[i].type));
        assert_string_equal(drllm_format_name(not_read[i].type), not_read[i].name);
    }
}

static void test_row_bytes(void **state) {
    (void)state;
    static const struct {
        enum drllm_format format;
        size_t block_size;
        size_t block_bytes;
    } expected[] = {
        {DRLLM_FORMAT_F32, 1, 4},      {DRLLM_FORMAT_F16, 1, 2},      {DRLLM_FORMAT_BF16, 1, 2},
        {DRLLM_FORMAT_I8, 1, 1},       {DRLLM_FORMAT_Q4_0, 32, 18},   {DRLLM_FORMAT_Q4_1, 32, 20},
        {DRLLM_FORMAT_Q5_0, 32, 22},   {DRLLM_FORMAT_Q5_1, 32, 24},   {DRLLM_FORMAT_Q8_0, 32, 34},
        {DRLLM_FORMAT_Q4_K, 256, 144}, {DRLLM_FORMAT_Q5_K, 256, 176}, {DRLLM_FORMAT_Q6_K, 256, 210},
    };
    for (size_t i = 0; i < LENGTH(expected); i++) {
        const enum drllm_format format = expected[i].format;
        const size_t size = expected[i].block_size;
        const size_t bytes = expected[i].block_bytes;
        assert_int_equal(drllm_format_row_bytes(format, 0), 0);
        assert_int_equal(drllm_format_row_bytes(format, size), bytes);
        assert_int_equal(drllm_format_row_bytes(format, 7 * size), 7 * bytes);
        if (size > 1) {
            assert_int_equal(drllm_format_row_bytes(format, size - 1), 0);
            assert_int_equal(drllm_format_row_bytes(format, size + 1), 0);
            assert_int_equal(drllm_format_row_bytes(format, 1), 0);
        }
        if (bytes > size) {
            const size_t most = SIZE_MAX / bytes;
            assert_int_equal(drllm_format_row_bytes(format, most * size), most * bytes);
            assert_int_equal(drllm_format_row_bytes(format, (most + 1) * size), 0);
            assert_int_equal(drllm_format_row_bytes(format, SIZE_MAX / size * size), 0);
        }
    }
    assert_int_equal(drllm_format_row_bytes(DRLLM_FORMAT_Q8C, 32), 0);
    assert_int_equal(drllm_format_row_bytes(DRLLM_FORMAT_QB4W, 32), 0);
    assert_int_equal(drllm_format_row_bytes((enum drllm_format)10, 256), 0);
}

/* The value by the definition of IEEE 754, for a format with n_mantissa bits and this bias. */
static double half_value(uint32_t half, int n_mantissa, int bias) {
    const int mantissa = (int)(half & ((1u << n_mantissa) - 1));
    const int exponent = (int)(half >> n_mantissa & ((1u << (15 - n_mantissa)) - 1));
    const double value = exponent == 0 ? ldexp(mantissa, 1 - bias - n_mantissa)
                                       : ldexp(mantissa + (1 << n_mantissa), exponent - bias - n_mantissa);
    return half & 0x8000u ? -value : value;
}

/* All 65536 numbers of a 16-bit float format, and what rounds to each: the midpoint between neighbours goes to the even
 * one, the next floats on either side of it to the nearer one. */
static void check_half(float (*widen)(uint16_t), uint16_t (*narrow)(float), int n_mantissa, int bias) {
    const uint32_t infinite = (1u << 15) - (1u << n_mantissa);
    for (uint32_t half = 0; half < 65536; half++) {
        const float value = widen((uint16_t)half);
        const uint32_t magnitude = half & 0x7fffu;
        if (magnitude > infinite) {
            assert_true(isnan(value));
            assert_true((narrow(value) & 0x7fffu) > infinite);
            assert_int_equal(narrow(value) & 0x8000u, half & 0x8000u);
            continue;
        }
        assert_int_equal(narrow(value), half);
        assert_int_equal(signbit(value) != 0, half >> 15);
        if (magnitude == infinite) {
            assert_true(isinf(value));
            continue;
        }
        if ((double)value != half_value(half, n_mantissa, bias)) {
            fail_msg("%04x is %a", (unsigned)half, (double)value);
        }
        if (half < infinite) { /* half_value counts on beyond the largest number, as rounding does */
            const double next = half_value(half + 1, n_mantissa, bias);
            const float midpoint = (float)(((double)value + next) / 2);
            const uint32_t bits = drllm_f32_to_bits(midpoint);
            const uint32_t up = half + 1;
            const uint32_t even = half & 1 ? up : half;
            assert_int_equal(narrow(midpoint), even);
            assert_int_equal(narrow(drllm_bits_to_f32(bits - 1)), half);
            assert_int_equal(narrow(drllm_bits_to_f32(bits + 1)), up);
            assert_int_equal(narrow(-midpoint), even | 0x8000u);
            assert_int_equal(narrow(-drllm_bits_to_f32(bits - 1)), half | 0x8000u);
            assert_int_equal(narrow(-drllm_bits_to_f32(bits + 1)), up | 0x8000u);
        }
    }
    assert_int_equal(narrow(3.4028235e38f), infinite);
    assert_int_equal(narrow(infinity), infinite);
    assert_int_equal(narrow(-infinity), infinite | 0x8000u);
}

static void test_f16(void **state) {
    (void)state;
    check_half(drllm_f16_to_f32, drllm_f32_to_f16, 10, 15);
    assert_int_equal(drllm_f32_to_f16(0x1p-149f), 0);
    assert_int_equal(drllm_f32_to_f16(-0x1p-149f), 0x8000);
    assert_int_equal(drllm_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(drllm_f32_to_f16(65520.0f), 0x7c00);
    /* A NaN whose payload lies in the bits that are cut stays one. */
    assert_int_equal(drllm_f32_to_f16(drllm_bits_to_f32(0xff800001u)), 0xfe00);
}

static void test_bf16(void **state) {
    (void)state;
    check_half(drllm_bf16_to_f32, drllm_f32_to_bf16, 7, 127);
    assert_int_equal(drllm_f32_to_bf16(0x1p-149f), 0);
    assert_int_equal(drllm_f32_to_bf16(drllm_bits_to_f32(0xff800001u)), 0xffc0);
}

static const struct {
    enum drllm_format format;
    size_t n;
    const uint8_t *bytes;
    const float *floats;
} golden[] = {
    {DRLLM_FORMAT_F16, 64, f16_bytes, f16_floats},     {DRLLM_FORMAT_BF16, 64, bf16_bytes, bf16_floats},
    {DRLLM_FORMAT_Q4_0, 64, q4_0_bytes, q4_0_floats},  {DRLLM_FORMAT_Q4_1, 64, q4_1_bytes, q4_1_floats},
    {DRLLM_FORMAT_Q5_0, 64, q5_0_bytes, q5_0_floats},  {DRLLM_FORMAT_Q5_1, 64, q5_1_bytes, q5_1_floats},
    {DRLLM_FORMAT_Q8_0, 64, q8_0_bytes, q8_0_floats},  {DRLLM_FORMAT_Q4_K, 256, q4_k_bytes, q4_k_floats},
    {DRLLM_FORMAT_Q5_K, 256, q5_k_bytes, q5_k_floats}, {DRLLM_FORMAT_Q6_K, 256, q6_k_bytes, q6_k_floats},
};

static void test_golden_dequantize(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTH(golden); i++) {
        const size_t n = golden[i].n;
        const size_t bytes = drllm_format_row_bytes(golden[i].format, n);
        float *got = allocate(n * sizeof *got);
        for (size_t shift = 0; shift < 2; shift++) { /* rows need not be aligned */
            uint8_t *row = allocate(bytes + shift);
            memcpy(row + shift, golden[i].bytes, bytes);
            memset(got, 0xa5, n * sizeof *got);
            drllm_dequantize_row(golden[i].format, row + shift, got, n);
            assert_same_floats(got, golden[i].floats, n);
            free(row);
        }
        free(got);
    }
}

static void test_golden_quantize(void **state) {
    (void)state;
    size_t n_checked = 0;
    for (size_t i = 0; i < LENGTH(golden); i++) {
        if (is_writable(golden[i].format)) {
            const size_t bytes = drllm_format_row_bytes(golden[i].format, LENGTH(weights));
            uint8_t *row = allocate(bytes);
            assert_true(drllm_quantize_row(golden[i].format, weights, row, LENGTH(weights)));
            assert_memory_equal(row, golden[i].bytes, bytes);
            free(row);
            n_checked++;
        }
    }
    assert_int_equal(n_checked, LENGTH(writable_formats) - 1); /* F32 needs no vector */
}

/* How far a weight may be from what was written: half a step, plus what the scale and the minimum lose as 16-bit
 * floats. */
static double error_bound(enum drllm_format format, double weight, double min, double max, double magnitude) {
    const double f16 = 0x1p-11;
    const double tiny = 0x1p-24; /* subnormal 16-bit floats */
    switch ((int)format) {
    case DRLLM_FORMAT_F32:
        return 0;
    case DRLLM_FORMAT_F16:
        return fabs(weight) * f16 + tiny;
    case DRLLM_FORMAT_BF16:
        return fabs(weight) * 0x1p-8;
    /* A whole step: the largest weight becomes -8 steps, and its opposite is cut to 7. */
    case DRLLM_FORMAT_Q4_0:
        return magnitude / 8 * (1.0001 + 8 * f16) + 8 * tiny;
    case DRLLM_FORMAT_Q4_1:
        return (max - min) / 15 * (0.5001 + 15 * f16) + fabs(min) * f16 + 16 * tiny;
    default:
        return magnitude / 127 * (0.5001 + 127 * f16) + 127 * tiny;
    }
}

static void test_round_trip(void **state) {
    (void)state;
    enum { N = 32 * 25 };
    static const float magnitudes[] = {0x1p-30f, 1e-6f, 0.002f, 0.05f, 1.0f, 1000.0f};
    uint32_t random = 1;
    float *source = allocate(N * sizeof *source);
    float *result = allocate(N * sizeof *result);
    for (size_t f = 0; f < LENGTH(writable_formats); f++) {
        const enum drllm_format format = writable_formats[f];
        uint8_t *row = allocate(drllm_format_row_bytes(format, N));
        for (size_t m = 0; m < LENGTH(magnitudes); m++) {
            for (size_t i = 0; i < N; i++) { /* some groups have one sign, and one is zero */
                const float weight = random_weight(&random) * magnitudes[m];
                source[i] = i / 32 == 3       ? 0.0f
                            : i / 32 % 5 == 1 ? fabsf(weight)
                            : i / 32 % 5 == 2 ? -fabsf(weight)
                                              : weight;
            }
            assert_true(drllm_quantize_row(format, source, row, N));
            drllm_dequantize_row(format, row, result, N);
            for (size_t i = 0; i < N; i++) {
                double min = (double)source[i];
                double max = (double)source[i];
                for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++) {
                    /* No fmin and fmax: gcc 12 crashes on them here for aarch64. */
                    min = (double)source[j] < min ? (double)source[j] : min;
                    max = (double)source[j] > max ? (double)source[j] : max;
                }
                const double error = fabs((double)result[i] - (double)source[i]);
                const double bound = error_bound(format, (double)source[i], min, max, fmax(-min, max));
                if (!(error <= bound)) {
                    fail_msg("%s: %a became %a, more than %a off", drllm_format_name((uint32_t)format),
                             (double)source[i], (double)result[i], bound);
                }
            }
            assert_true(result[3 * 32 + 7] == 0.0f);
        }
        free(row);
    }
    free(source);
    free(result);
}

static void test_q8c(void **state) {
    (void)state;
    uint32_t random = 2;
    for (size_t n = 1; n < 300; n += 13) {
        float *source = allocate(n * sizeof *source);
        int8_t *q = allocate(n);
        float scale = -1.0f;
        float largest = 0.0f;
        for (size_t i = 0; i < n; i++) {
            source[i] = random_weight(&random) * 0.03f;
            largest = fmaxf(largest, fabsf(source[i]));
        }
        assert_true(drllm_quantize_row_q8c(source, q, &scale, n));
        assert_true(scale == largest / 127.0f);
        for (size_t i = 0; i < n; i++) {
            assert_in_range(q[i] + 127, 0, 254);
            assert_int_equal(q[i], (int)roundf(source[i] / scale)); /* halves away from zero */
        }
        for (size_t i = 0; i < n; i++) {
            const float weight = source[i];
            static const uint32_t not_finite[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xff800001};
            source[i] = drllm_bits_to_f32(not_finite[i % LENGTH(not_finite)]);
            assert_false(drllm_quantize_row_q8c(source, q, &scale, n));
            source[i] = weight;
        }
        /* Zeros, and weights so small that their scale is no normal float, become a zero row. */
        for (size_t i = 0; i < n; i++) {
            source[i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? 0x1p-149f : -0x1p-120f;
        }
        memset(q, 1, n);
        assert_true(drllm_quantize_row_q8c(source, q, &scale, n));
        assert_true(scale == 0.0f);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(q[i], 0);
        }
        free(source);
        free(q);
    }

    /* Ties: the scale is exactly 1. */
    static const float ties[8] = {127.0f, -127.0f, 0.5f, -0.5f, 1.5f, -2.5f, 0x1.fffffep-2f, 126.5f};
    static const int8_t rounded[8] = {127, -127, 1, -1, 2, -3, 0, 127};
    int8_t q[8];
    float scale;
    assert_true(drllm_quantize_row_q8c(ties, q, &scale, 8));
    assert_true(scale == 1.0f);
    assert_memory_equal(q, rounded, 8);
}

static void test_refused(void **state) {
    (void)state;
    enum { N = 96 };
    float source[N];
    uint8_t row[N * 4];
    static const uint32_t not_finite[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001};
    for (size_t f = 0; f < LENGTH(writable_formats); f++) {
        for (size_t i = 0; i < N; i++) {
            source[i] = (float)i - 40.0f;
        }
        for (size_t i = 0; i < N; i++) {
            const float weight = source[i];
            source[i] = drllm_bits_to_f32(not_finite[i % LENGTH(not_finite)]);
            assert_false(drllm_quantize_row(writable_formats[f], source, row, N));
            source[i] = weight;
        }
        assert_true(drllm_quantize_row(writable_formats[f], source, row, N));
    }
    for (size_t f = 0; f < LENGTH(all_formats); f++) {
        memset(source, 0, sizeof source);
        if (!is_writable(all_formats[f])) {
            assert_false(drllm_quantize_row(all_formats[f], source, row, N));
        }
    }

    /* The largest weights that each format holds, and the smallest that it does not: an f16 scale ends at 65504, and
     * what rounds up to 65536 is infinite. */
    static const struct {
        enum drllm_format format;
        float fits;
        float too_large;
    } limits[] = {
        {DRLLM_FORMAT_F32, 0x1.fffffep+127f, INFINITY},      {DRLLM_FORMAT_F16, 0x1.ffdffep+15f, 0x1.ffep+15f},
        {DRLLM_FORMAT_BF16, 0x1.fefffep+127f, 0x1.ffp+127f}, {DRLLM_FORMAT_Q4_0, 0x1.ffdffep+18f, 0x1.ffep+18f},
        {DRLLM_FORMAT_Q4_1, 0x1.ffdffep+15f, 0x1.ffep+15f},  {DRLLM_FORMAT_Q8_0, 0x1.fbe03ep+22f, 0x1.fbe04p+22f},
    };
    for (size_t i = 0; i < LENGTH(limits); i++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            for (size_t j = 0; j < N; j++) {
                source[j] = (float)sign * limits[i].fits;
            }
            assert_true(drllm_quantize_row(limits[i].format, source, row, N));
            source[N / 2] = (float)sign * limits[i].too_large;
            if (limits[i].format == DRLLM_FORMAT_Q4_1 &&
                sign > 0) { /* a large maximum alone only makes the step large */
                assert_true(drllm_quantize_row(limits[i].format, source, row, N));
                source[N / 2] = 0x1.fffffep+127f;
            }
            assert_false(drllm_quantize_row(limits[i].format, source, row, N));
        }
    }
    source[0] = -0x1.fffffep+127f; /* max - min overflows */
    source[1] = 0x1.fffffep+127f;
    assert_false(drllm_quantize_row(DRLLM_FORMAT_Q4_1, source, row, N));
}

static void assert_quantised_to(enum drllm_format format, const float *source, const void *expected) {
    uint8_t row[DRLLM_GROUP * 4];
    assert_true(drllm_quantize_row(format, source, row, DRLLM_GROUP));
    assert_memory_equal(row, expected, drllm_format_row_bytes(format, DRLLM_GROUP));
}

static void test_ties(void **state) {
    (void)state;
    float source[DRLLM_GROUP];
    enum { ONE = 0x3c00 };
    struct drllm_block_q4_0 q4_0 = {.d = ONE};
    struct drllm_block_q4_1 q4_1 = {.d = ONE};
    struct drllm_block_q8_0 q8_0 = {.d = ONE};
    for (int j = 0; j < 16; j++) { /* halves go up: -7.5 to -7 */
        source[j] = (float)j - 8.0f;
        source[j + 16] = (float)j - 7.5f;
        q4_0.qs[j] = (uint8_t)(j | (j < 15 ? j + 1 : 15) << 4);
    }
    assert_quantised_to(DRLLM_FORMAT_Q4_0, source, &q4_0);
    for (int j = 0; j < 16; j++) {
        source[j] = (float)j;
        source[j + 16] = j < 15 ? (float)j + 0.5f : 0.0f;
        q4_1.qs[j] = (uint8_t)(j | (j < 15 ? j + 1 : 0) << 4);
    }
    assert_quantised_to(DRLLM_FORMAT_Q4_1, source, &q4_1);
    for (int j = 0; j < 16; j++) { /* halves go away from zero */
        source[j] = j == 0 ? 127.0f : (float)j * 8.0f + 0.5f;
        source[j + 16] = -source[j];
        q8_0.qs[j] = (int8_t)(j == 0 ? 127 : j * 8 + 1);
        q8_0.qs[j + 16] = (int8_t)-q8_0.qs[j];
    }
    assert_quantised_to(DRLLM_FORMAT_Q8_0, source, &q8_0);
}

static void test_zero_blocks(void **state) {
    (void)state;
    float source[DRLLM_GROUP] = {0};
    struct drllm_block_q4_0 q4_0 = {.d = 0x8000}; /* 0 / -8 */
    struct drllm_block_q4_1 q4_1 = {0};
    struct drllm_block_q8_0 q8_0 = {0};
    memset(q4_0.qs, 0x88, sizeof q4_0.qs);
    assert_quantised_to(DRLLM_FORMAT_Q4_0, source, &q4_0);
    assert_quantised_to(DRLLM_FORMAT_Q4_1, source, &q4_1);
    assert_quantised_to(DRLLM_FORMAT_Q8_0, source, &q8_0);
    /* Scales so small that their inverse overflows: ggml leaves it undefined, here the block is zero. */
    for (int j = 0; j < DRLLM_GROUP; j++) {
        source[j] = (float)j * 0x1p-147f;
    }
    assert_quantised_to(DRLLM_FORMAT_Q4_0, source, &q4_0);
    assert_quantised_to(DRLLM_FORMAT_Q4_1, source, &q4_1);
    assert_quantised_to(DRLLM_FORMAT_Q8_0, source, &q8_0);
}

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static int as_int8(uint8_t byte) {
    return byte < 128 ? byte : byte - 256;
}

struct packed_weight {
    int q; /* as stored; the bits for 16-bit floats */
    float value;
};

/* The weight of a row in a packed matrix, read as matmul.h describes the layout. */
static struct packed_weight read_packed(enum drllm_format format, const uint8_t *packed, size_t cols, size_t row,
                                        size_t col) {
    const size_t n_groups = (cols + 31) / 32;
    const size_t group = col / 32;
    const size_t in_group = col % 32;
    const size_t r = row % 8;
    const size_t q4_byte = in_group / 8 * 32 + r * 4 + in_group % 4;
    const int q4_shift = in_group % 8 < 4 ? 0 : 4;
    const size_t q8_byte = in_group / 4 * 32 + r * 4 + in_group % 4;
    struct packed_weight weight = {0, 0.0f};
    const uint8_t *p = packed;
    switch ((int)format) {
    case DRLLM_FORMAT_F32:
        p += row / 8 * cols * 32 + col * 32 + r * 4;
        memcpy(&weight.value, p, 4);
        weight.q = weight.value != 0.0f;
        break;
    case DRLLM_FORMAT_F16:
    case DRLLM_FORMAT_BF16:
        weight.q = load_u16(p + row / 8 * cols * 16 + col * 16 + r * 2);
        weight.value =
            format == DRLLM_FORMAT_F16 ? drllm_f16_to_f32((uint16_t)weight.q) : drllm_bf16_to_f32((uint16_t)weight.q);
        break;
    case DRLLM_FORMAT_Q4_0:
        p += (row / 8 * n_groups + group) * (16 + 128);
        weight.q = p[16 + q4_byte] >> q4_shift & 15;
        weight.value = drllm_f16_to_f32(load_u16(p + 2 * r)) * (float)(weight.q - 8);
        break;
    case DRLLM_FORMAT_Q4_1:
        p += (row / 8 * n_groups + group) * (16 + 16 + 128);
        weight.q = p[32 + q4_byte] >> q4_shift & 15;
        weight.value = drllm_f16_to_f32(load_u16(p + 2 * r)) * (float)weight.q;
        weight.value += drllm_f16_to_f32(load_u16(p + 16 + 2 * r));
        break;
    case DRLLM_FORMAT_Q8_0:
        p += (row / 8 * n_groups + group) * (16 + 256);
        weight.q = as_int8(p[16 + q8_byte]);
        weight.value = drllm_f16_to_f32(load_u16(p + 2 * r)) * (float)weight.q;
        break;
    default: { /* q8c */
        float scale;
        p += row / 8 * (n_groups * 256 + 32);
        memcpy(&scale, p + n_groups * 256 + 4 * r, 4);
        weight.q = as_int8(p[group * 256 + q8_byte]);
        weight.value = scale * (float)weight.q;
    }
    }
    return weight;
}

static void check_packing(enum drllm_format format, size_t rows, size_t cols) {
    const bool q8c = format == DRLLM_FORMAT_Q8C;
    const size_t row_bytes = q8c ? cols : drllm_format_row_bytes(format, cols);
    const size_t n_panels = (rows + 7) / 8;
    const size_t padded_cols = q8c ? (cols + 31) / 32 * 32 : cols;
    uint32_t random = 3;
    uint8_t *source = allocate(rows * row_bytes);
    float *scales = q8c ? allocate(rows * sizeof *scales) : NULL;
    float *dequantised = allocate(rows * cols * sizeof *dequantised);
    float *weights_row = allocate(cols * sizeof *weights_row);
    for (size_t row = 0; row < rows; row++) {
        for (size_t col = 0; col < cols; col++) {
            weights_row[col] = random_weight(&random);
        }
        if (q8c) {
            int8_t *q = (int8_t *)source + row * cols;
            assert_true(drllm_quantize_row_q8c(weights_row, q, &scales[row], cols));
            for (size_t col = 0; col < cols; col++) {
                dequantised[row * cols + col] = scales[row] * (float)q[col];
            }
        } else {
            assert_true(drllm_quantize_row(format, weights_row, source + row * row_bytes, cols));
            drllm_dequantize_row(format, source + row * row_bytes, dequantised + row * cols, cols);
        }
    }

    const size_t bytes = drllm_packed_bytes(format, rows, cols);
    assert_int_equal(bytes, n_panels * drllm_packed_bytes(format, 1, cols));
    uint8_t *packed = allocate(bytes);
    drllm_pack_panels(format, source, scales, rows, cols, packed, 0, 0);
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(packed[i], 0xa5);
    }
    /* Panels in any order and number. */
    const size_t first = n_panels / 2;
    drllm_pack_panels(format, source, scales, rows, cols, packed, first, n_panels - first);
    for (size_t i = 0; i < bytes / n_panels * first; i++) {
        assert_int_equal(packed[i], 0xa5);
    }
    drllm_pack_panels(format, source, scales, rows, cols, packed, 0, first);

    for (size_t row = 0; row < n_panels * 8; row++) {
        for (size_t col = 0; col < padded_cols; col++) {
            const struct packed_weight weight = read_packed(format, packed, cols, row, col);
            if (row < rows && col < cols) {
                assert_same_floats(&weight.value, &dequantised[row * cols + col], 1);
            } else {
                assert_int_equal(weight.q, 0);
                assert_true(weight.value == 0.0f);
            }
        }
    }
    free(source);
    free(scales);
    free(dequantised);
    free(weights_row);
    free(packed);
}

static void test_packing(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 8, 9, 21, 40};
    static const size_t groups_cols[] = {32, 64, 96, 288};
    static const size_t any_cols[] = {1, 3, 31, 32, 33, 100};
    for (size_t r = 0; r < LENGTH(rows); r++) {
        for (size_t c = 0; c < LENGTH(groups_cols); c++) {
            check_packing(DRLLM_FORMAT_Q4_0, rows[r], groups_cols[c]);
            check_packing(DRLLM_FORMAT_Q4_1, rows[r], groups_cols[c]);
            check_packing(DRLLM_FORMAT_Q8_0, rows[r], groups_cols[c]);
        }
        for (size_t c = 0; c < LENGTH(any_cols); c++) {
            check_packing(DRLLM_FORMAT_Q8C, rows[r], any_cols[c]);
            check_packing(DRLLM_FORMAT_F32, rows[r], any_cols[c]);
            check_packing(DRLLM_FORMAT_F16, rows[r], any_cols[c]);
            check_packing(DRLLM_FORMAT_BF16, rows[r], any_cols[c]);
        }
    }
}

static void test_packed_bytes(void **state) {
    (void)state;
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q4_0, 9, 64), 2 * 2 * (16 + 128));
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q4_1, 9, 64), 2 * 2 * (32 + 128));
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q8_0, 8, 96), 3 * (16 + 256));
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q8C, 8, 65), 3 * 256 + 32);
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_F32, 3, 5), 5 * 32);
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_BF16, 17, 5), 3 * 5 * 16);
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q4_0, 8, 33), 0); /* no whole groups */
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q8_0, 8, 31), 0);
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_Q4_K, 8, 256), 0); /* run in another format */
    assert_int_equal(drllm_packed_bytes(DRLLM_FORMAT_QB4W, 8, 256), 0);
    static const enum drllm_format packed[] = {DRLLM_FORMAT_F32,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16,
                                               DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
                                               DRLLM_FORMAT_Q8C};
    for (size_t i = 0; i < LENGTH(packed); i++) {
        assert_int_equal(drllm_packed_bytes(packed[i], 0, 64), 0);
        assert_int_equal(drllm_packed_bytes(packed[i], 64, 0), 0);
        assert_int_equal(drllm_packed_bytes(packed[i], SIZE_MAX, 64), 0);
        assert_int_equal(drllm_packed_bytes(packed[i], 1, SIZE_MAX / 32 * 32), 0);
        assert_int_equal(drllm_packed_bytes(packed[i], 1, SIZE_MAX), 0);
        /* The largest number of panels that still has a size. */
        const size_t panel = drllm_packed_bytes(packed[i], 1, 64);
        assert_int_equal(drllm_packed_bytes(packed[i], SIZE_MAX / panel * 8, 64), SIZE_MAX / panel * panel);
        assert_int_equal(drllm_packed_bytes(packed[i], SIZE_MAX / panel * 8 + 1, 64), 0);
    }
}

int drllm_test_formats(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_row_bytes),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_golden_dequantize),
        cmocka_unit_test(test_golden_quantize),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_q8c),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_zero_blocks),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_packed_bytes),
    };
    return drllm_run_group("formats", tests, NULL, NULL);
}
