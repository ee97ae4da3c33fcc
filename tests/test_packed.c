/* Packed model files: the same bits as the GGUF file, routers inside, damaged and hostile files, memory and disks that
 * run out, the program's pack and inspect. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/crc32.h"
#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "runtime/packed_file.h"
#include "tests/cli.h"
#include "tests/real_model.h"
#include "tests/router_builder.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_TOKENS = 11, HEADER_BYTES = sizeof(struct drllm_packed_header) };

struct bytes {
    uint8_t *data;
    size_t size, capacity;
    size_t limit; /* a write beyond fails; 0: none */
};

static bool take(void *user, const void *data, size_t size) {
    struct bytes *bytes = user;
    if (bytes->limit != 0 && bytes->size + size > bytes->limit) {
        return false;
    }
    if (bytes->size + size > bytes->capacity) {
        bytes->capacity = 2 * (bytes->size + size);
        bytes->data = realloc(bytes->data, bytes->capacity);
        assert_non_null(bytes->data);
    }
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
    return true;
}

static struct drllm_model_params one_thread(void) {
    struct drllm_model_params params = drllm_model_default_params();
    params.load_threads = 1;
    params.head = DRLLM_HEAD_FILE;
    return params;
}

static struct drllm_model *open_bytes(const void *data, size_t size) {
    const struct drllm_model_params params = one_thread();
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    if (drllm_model_open_memory(data, size, &params, &model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return model;
}

/* A GGUF file and what is packed of it, in a block of just its size, so that every access behind it is seen. */
struct pair {
    uint8_t *gguf;
    size_t gguf_size;
    uint8_t *packed;
    size_t size;
};

static void pack(struct pair *pair, const void *routers, size_t routers_size) {
    struct drllm_model *model = open_bytes(pair->gguf, pair->gguf_size);
    struct bytes bytes = {NULL, 0, 0, 0};
    assert_int_equal(drllm_packed_write(model, routers, routers_size, take, &bytes, NULL), DRLLM_OK);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    pair->packed = malloc(bytes.size);
    assert_non_null(pair->packed);
    memcpy(pair->packed, bytes.data, bytes.size);
    pair->size = bytes.size;
    free(bytes.data);
}

static struct pair make_pair(const struct tiny_options *options) {
    struct pair pair = {NULL, 0, NULL, 0};
    pair.gguf = tiny_model_file(options, &pair.gguf_size);
    pack(&pair, NULL, 0);
    return pair;
}

static void free_pair(struct pair *pair) {
    free(pair->gguf);
    free(pair->packed);
}

static struct tiny_options small_options(void) {
    struct tiny_options options = tiny_default_options();
    options.n_layers = 2;
    options.d_model = options.d_ff = 32;
    options.n_heads = 2;
    options.n_kv_heads = 1;
    options.blocks = options.embedding = options.down = DRLLM_FORMAT_Q4_1;
    return options;
}

/* ---- The same bits ---- */

static struct drllm_session *open_session(const struct drllm_model *model) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = 64;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    return session;
}

static int keep_logits(void *user, size_t position, const float *logits) {
    float *const *kept = user;
    (void)position;
    memcpy(kept[0] + position * (size_t)(kept[1] - kept[0]), logits, (size_t)(kept[1] - kept[0]) * sizeof *logits);
    return 0;
}

/* [N_TOKENS][n_vocab], to be freed. */
static float *run(const struct drllm_model *model, const struct drllm_depth *depth, uint8_t *program) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    float *logits = calloc(N_TOKENS * info.n_vocab, sizeof *logits);
    assert_non_null(logits);
    float *kept[2] = {logits, logits + info.n_vocab};
    int32_t tokens[N_TOKENS];
    tiny_random_tokens(77, tokens, N_TOKENS, info.n_vocab);
    struct drllm_session *session = open_session(model);
    if (depth != NULL) {
        assert_int_equal(drllm_session_set_depth(session, depth), DRLLM_OK);
    }
    assert_int_equal(drllm_session_prefill_logits(session, tokens, N_TOKENS, 0, keep_logits, kept), DRLLM_OK);
    if (program != NULL) {
        assert_int_equal(drllm_session_get_program(session, program), DRLLM_OK);
    }
    drllm_session_close(session);
    return logits;
}

static void expect_same_texts(const struct drllm_model *a, const struct drllm_model *b) {
    static const char *const texts[] = {"",
                                        " ab ba, zz",
                                        "<s>x</s> abcd",
                                        "\xff\xfe and \xE2\x96\x81 spaces",
                                        "caf\xC3\xA9 <unk>",
                                        "a\nb\t  c 12345",
                                        "hello world the quick brown fox"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        for (unsigned flags = 0; flags < 4; flags++) {
            int32_t ids[2][256];
            size_t n[2] = {0, 0};
            const struct drllm_model *const models[2] = {a, b};
            char out[2][512];
            size_t size[2] = {0, 0};
            for (size_t m = 0; m < 2; m++) {
                assert_int_equal(drllm_tokenize(models[m], texts[i], strlen(texts[i]), flags, ids[m], 256, &n[m], NULL),
                                 DRLLM_OK);
                assert_int_equal(drllm_detokenize(models[m], ids[m], n[m], flags > 1, out[m], sizeof out[m], &size[m]),
                                 DRLLM_OK);
            }
            assert_int_equal(n[0], n[1]);
            assert_memory_equal(ids[0], ids[1], n[0] * sizeof ids[0][0]);
            assert_int_equal(size[0], size[1]);
            assert_memory_equal(out[0], out[1], size[0]);
        }
    }
}

static void expect_same_info(const struct drllm_model *a, const struct drllm_model *b) {
    struct drllm_model_info x, y;
    drllm_model_get_info(a, &x);
    drllm_model_get_info(b, &y);
    assert_string_equal(x.name, y.name);
    assert_string_equal(x.quantization, y.quantization);
    assert_string_equal(x.head_format, y.head_format);
    assert_string_equal(x.backend, y.backend);
    assert_memory_equal(&x.n_layers, &y.n_layers,
                        offsetof(struct drllm_model_info, bos_token) - offsetof(struct drllm_model_info, n_layers));
    assert_int_equal(x.bos_token, y.bos_token);
    assert_int_equal(x.eos_token, y.eos_token);
    assert_int_equal(x.add_bos, y.add_bos);
    assert_int_equal(x.chat_template, y.chat_template);
    for (size_t id = 0; id < x.n_vocab; id++) {
        assert_int_equal(drllm_token_is_end(a, (int32_t)id), drllm_token_is_end(b, (int32_t)id));
    }
    assert_true(drllm_model_fingerprint(a) == drllm_model_fingerprint(b));
}

static void expect_same(const struct drllm_model *a, const struct drllm_model *b) {
    struct drllm_model_info info;
    drllm_model_get_info(a, &info);
    expect_same_info(a, b);
    expect_same_texts(a, b);
    float *x = run(a, NULL, NULL), *y = run(b, NULL, NULL);
    assert_memory_equal(x, y, N_TOKENS * info.n_vocab * sizeof *x);
    free(x);
    free(y);
}

static void check_pair(const struct tiny_options *options) {
    struct pair pair = make_pair(options);
    struct drllm_model *model = open_bytes(pair.gguf, pair.gguf_size), *packed = open_bytes(pair.packed, pair.size);
    expect_same(model, packed);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    /* What is packed again is the same file. */
    struct bytes again = {NULL, 0, 0, 0};
    assert_int_equal(drllm_packed_write(packed, NULL, 0, take, &again, NULL), DRLLM_OK);
    assert_int_equal(again.size, pair.size);
    assert_memory_equal(again.data, pair.packed, pair.size);
    free(again.data);
    assert_int_equal(drllm_model_close(packed), DRLLM_OK);
    free_pair(&pair);
}

static void test_same_bits(void **state) {
    (void)state;
    static const enum drllm_format formats[] = {
        DRLLM_FORMAT_F32, DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
        DRLLM_FORMAT_Q8C, DRLLM_FORMAT_Q5_0, DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q5_K, DRLLM_FORMAT_Q6_K,
    };
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        for (int variant = 0; variant < 4; variant++) {
            struct tiny_options options = small_options();
            const bool k =
                formats[i] == DRLLM_FORMAT_Q4_K || formats[i] == DRLLM_FORMAT_Q5_K || formats[i] == DRLLM_FORMAT_Q6_K;
            options.d_model = options.d_ff = k ? 256 : 32;
            options.head_dim = options.d_model / options.n_heads;
            options.n_rot = options.head_dim;
            options.blocks = options.embedding = options.down = options.head = formats[i];
            options.untied = variant % 2 != 0;
            options.bpe = variant >= 2;
            options.biases = variant == 1;
            options.rope_freqs = variant == 2;
            options.n_vocab += (size_t)variant; /* not always whole panels */
            check_pair(&options);
        }
    }
}

static void test_vocabulary_only(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_model_params params = one_thread();
    params.vocab_only = true;
    struct drllm_model *model = NULL, *whole = open_bytes(pair.gguf, pair.gguf_size);
    assert_int_equal(drllm_model_open_memory(pair.packed, pair.size, &params, &model, NULL), DRLLM_OK);
    expect_same_texts(model, whole);
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(model, NULL, &session, NULL), DRLLM_ERR_STATE);
    struct bytes bytes = {NULL, 0, 0, 0};
    assert_int_equal(drllm_packed_write(model, NULL, 0, take, &bytes, NULL), DRLLM_ERR_STATE);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    assert_int_equal(drllm_model_close(whole), DRLLM_OK);
    free_pair(&pair);
}

/* The bytes at odd multiples of 4, as an asset in a package may lie. */
static void test_alignment_of_four(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    options.embedding = options.head = DRLLM_FORMAT_Q8C;
    options.untied = true;
    struct pair pair = make_pair(&options);
    uint8_t *shifted = malloc(pair.size + 4);
    assert_non_null(shifted);
    memcpy(shifted + 4, pair.packed, pair.size);
    struct drllm_model *a = open_bytes(pair.packed, pair.size), *b = open_bytes(shifted + 4, pair.size);
    expect_same(a, b);
    assert_int_equal(drllm_model_close(a), DRLLM_OK);
    assert_int_equal(drllm_model_close(b), DRLLM_OK);
    free(shifted);
    free_pair(&pair);
}

static void test_path_and_descriptor(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    char path[] = "/tmp/drllm-packed-XXXXXX";
    const int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    uint8_t before[4096 + 64] = {0};
    assert_int_equal(write(descriptor, before, sizeof before), sizeof before);
    assert_int_equal(write(descriptor, pair.packed, pair.size), (ssize_t)pair.size);
    struct drllm_model_params params = one_thread();
    params.verify = true;
    struct drllm_model *model = NULL, *whole = open_bytes(pair.gguf, pair.gguf_size);
    assert_int_equal(drllm_model_open_fd(descriptor, sizeof before, pair.size, &params, &model, NULL), DRLLM_OK);
    expect_same(whole, model);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    assert_int_equal(lseek(descriptor, 0, SEEK_SET), 0);
    assert_int_equal(ftruncate(descriptor, 0), 0);
    assert_int_equal(write(descriptor, pair.packed, pair.size), (ssize_t)pair.size);
    assert_int_equal(drllm_model_open_path(path, &params, &model, NULL), DRLLM_OK);
    expect_same(whole, model);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    assert_int_equal(drllm_model_close(whole), DRLLM_OK);
    (void)close(descriptor);
    (void)unlink(path);
    free_pair(&pair);
}

/* ---- Routers inside ---- */

static void test_routers(void **state) {
    (void)state;
    for (int variant = 0; variant < 3; variant++) {
        struct tiny_options options = small_options();
        options.n_layers = 4;
        struct pair pair = {NULL, 0, NULL, 0};
        pair.gguf = tiny_model_file(&options, &pair.gguf_size);
        struct drllm_model *model = open_bytes(pair.gguf, pair.gguf_size);
        char fingerprint[20];
        (void)snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)drllm_model_fingerprint(model));
        struct router_options router_options = router_default_options(&options);
        const uint8_t program[] = {1, 0, 2, 1};
        router_options.int8 = variant != 0;
        router_options.program = variant == 2 ? program : NULL;
        router_options.fingerprint = fingerprint;
        size_t routers_size;
        uint8_t *file = router_builder_file(&router_options, &routers_size);
        pack(&pair, file, routers_size);
        struct drllm_model *packed = open_bytes(pair.packed, pair.size);
        struct drllm_routers *routers[3] = {NULL, NULL, NULL};
        assert_int_equal(drllm_routers_open_memory(model, file, routers_size, &routers[0], NULL), DRLLM_OK);
        assert_int_equal(drllm_routers_open_packed(packed, &routers[1], NULL), DRLLM_OK);
        assert_int_equal(drllm_routers_open_memory(packed, pair.packed, pair.size, &routers[2], NULL), DRLLM_OK);
        float *logits[3];
        uint8_t programs[3][4];
        for (size_t i = 0; i < 3; i++) {
            struct drllm_depth depth = drllm_depth_default();
            depth.kind = DRLLM_DEPTH_ROUTED;
            depth.routers = routers[i];
            logits[i] = run(i == 0 ? model : packed, &depth, programs[i]);
            assert_memory_equal(programs[i], programs[0], sizeof programs[0]);
            assert_memory_equal(logits[i], logits[0], N_TOKENS * options.n_vocab * sizeof **logits);
            if (variant == 2) {
                assert_memory_equal(programs[i], program, sizeof program);
            }
            assert_int_equal(drllm_routers_close(routers[i]), DRLLM_OK);
        }
        for (size_t i = 0; i < 3; i++) {
            free(logits[i]);
        }
        struct drllm_error error = {0};
        assert_int_equal(drllm_routers_open_packed(model, &routers[0], &error), DRLLM_ERR_STATE);
        assert_non_null(strstr(error.detail, "drllm pack"));
        assert_int_equal(drllm_routers_open_packed(NULL, &routers[0], NULL), DRLLM_ERR_ARGUMENT);
        assert_int_equal(drllm_routers_open_packed(packed, NULL, NULL), DRLLM_ERR_ARGUMENT);
        assert_int_equal(drllm_model_close(model), DRLLM_OK);
        assert_int_equal(drllm_model_close(packed), DRLLM_OK);

        /* Damage in them is seen when they are opened. */
        struct drllm_packed_file sections;
        assert_int_equal(drllm_packed_open(&sections, pair.packed, pair.size, NULL), DRLLM_OK);
        pair.packed[sections.sections[DRLLM_PACKED_ROUTERS].data - pair.packed + 100] ^= 4;
        packed = open_bytes(pair.packed, pair.size);
        assert_int_equal(drllm_routers_open_packed(packed, &routers[0], &error), DRLLM_ERR_FORMAT);
        assert_non_null(strstr(error.detail, "routers"));
        assert_int_equal(drllm_model_close(packed), DRLLM_OK);
        free(file);
        free_pair(&pair);
    }
}

static void test_no_routers(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_model *model = open_bytes(pair.packed, pair.size);
    struct drllm_routers *routers = NULL;
    struct drllm_error error = {0};
    assert_int_equal(drllm_routers_open_packed(model, &routers, &error), DRLLM_ERR_STATE);
    assert_int_equal(drllm_routers_open_memory(model, pair.packed, pair.size, &routers, &error), DRLLM_ERR_FORMAT);
    assert_non_null(strstr(error.detail, "--routers"));
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free_pair(&pair);
}

/* ---- Refusals ---- */

static int try_open(const uint8_t *data, size_t size, bool verify, struct drllm_error *error) {
    struct drllm_model_params params = one_thread();
    struct drllm_model *model = NULL;
    params.verify = verify;
    const int status = drllm_model_open_memory(data, size, &params, &model, error);
    assert_true((model != NULL) == (status == DRLLM_OK));
    if (status == DRLLM_OK) {
        assert_int_equal(drllm_model_close(model), DRLLM_OK);
    } else {
        assert_true(strlen(error->detail) > 0);
    }
    return status;
}

static void test_compute_modes(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_model_params params = one_thread();
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    params.compute = DRLLM_COMPUTE_F32;
    assert_int_equal(drllm_model_open_memory(pair.packed, pair.size, &params, &model, &error), DRLLM_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.detail, "GGUF"));
    params.compute = DRLLM_COMPUTE_EXACT;
    params.head = DRLLM_HEAD_Q8C;
    assert_int_equal(drllm_model_open_memory(pair.packed, pair.size, &params, &model, &error), DRLLM_ERR_UNSUPPORTED);
    params.head = DRLLM_HEAD_AUTO;
    assert_int_equal(drllm_model_open_memory(pair.packed, pair.size, &params, &model, &error), DRLLM_OK);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    params.head = DRLLM_HEAD_FILE;
    params.compute = DRLLM_COMPUTE_F32;
    assert_int_equal(drllm_model_open_memory(pair.gguf, pair.gguf_size, &params, &model, &error), DRLLM_OK);
    struct bytes bytes = {NULL, 0, 0, 0};
    assert_int_equal(drllm_packed_write(model, NULL, 0, take, &bytes, &error), DRLLM_ERR_STATE);
    assert_int_equal(bytes.size, 0);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free_pair(&pair);
}

static void set_header(struct pair *pair, const struct drllm_packed_header *header) {
    struct drllm_packed_header fixed = *header;
    const size_t table = fixed.n_sections * sizeof(struct drllm_packed_section);
    fixed.checksum = 0;
    if (HEADER_BYTES + table <= pair->size) {
        fixed.checksum = drllm_crc32(drllm_crc32(0, &fixed, HEADER_BYTES), pair->packed + HEADER_BYTES, table);
    }
    memcpy(pair->packed, &fixed, HEADER_BYTES);
}

static void test_header(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_packed_header good, header;
    struct drllm_error error = {0};
    memcpy(&good, pair.packed, sizeof good);
    assert_memory_equal(good.magic, "drllm\r\n\x1A", 8);
    assert_int_equal(good.file_size, pair.size);

    header = good;
    header.version = 2;
    set_header(&pair, &header);
    assert_int_equal(try_open(pair.packed, pair.size, false, &error), DRLLM_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.detail, "version 2"));
    assert_non_null(strstr(error.detail, "drllm pack"));
    header = good;
    header.layout = 9;
    set_header(&pair, &header);
    assert_int_equal(try_open(pair.packed, pair.size, false, &error), DRLLM_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.detail, "layout 9"));
    const uint64_t sizes[] = {0, 63, 64, 100, pair.size - 1, pair.size + 1, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        header = good;
        header.file_size = sizes[i];
        set_header(&pair, &header);
        assert_int_equal(try_open(pair.packed, pair.size, false, &error), DRLLM_ERR_FORMAT);
    }
    const uint32_t counts[] = {0, 1, 12, 65, UINT32_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        header = good;
        header.n_sections = counts[i];
        if (counts[i] > 64) {
            memcpy(pair.packed, &header, sizeof header);
        } else {
            set_header(&pair, &header);
        }
        assert_int_equal(try_open(pair.packed, pair.size, false, &error), DRLLM_ERR_FORMAT);
    }
    set_header(&pair, &good);
    assert_int_equal(try_open(pair.packed, pair.size, true, &error), DRLLM_OK);
    free_pair(&pair);
}

static void test_table(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_packed_header header;
    struct drllm_error error = {0};
    memcpy(&header, pair.packed, sizeof header);
    const uint64_t numbers[] = {0,         1, 4, 63, 64, 128, pair.size - 1, pair.size, pair.size + 64, UINT64_MAX - 63,
                                UINT64_MAX};
    for (size_t i = 0; i < header.n_sections; i++) {
        uint8_t *place = pair.packed + HEADER_BYTES + i * sizeof(struct drllm_packed_section);
        struct drllm_packed_section good, section;
        memcpy(&good, place, sizeof good);
        for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
            for (int field = 0; field < 3; field++) {
                section = good;
                if (field == 0) {
                    section.offset = numbers[k];
                } else if (field == 1) {
                    section.size = numbers[k];
                } else {
                    section.kind = (uint32_t)k + 1; /* two of a kind, or a kind in the place of another */
                }
                memcpy(place, &section, sizeof section);
                set_header(&pair, &header);
                const bool same = memcmp(&section, &good, sizeof good) == 0;
                const int status = try_open(pair.packed, pair.size, false, &error);
                /* A renamed section may be one that a model can do without. */
                assert_true(status == DRLLM_ERR_FORMAT || (status == DRLLM_OK && (same || field == 2)));
            }
        }
        memcpy(place, &good, sizeof good);
    }
    free_pair(&pair);
}

static void test_truncated(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    options.bpe = true;
    struct pair pair = make_pair(&options);
    struct drllm_packed_header header;
    struct drllm_error error = {0};
    memcpy(&header, pair.packed, sizeof header);
    size_t sizes[512];
    size_t n = 0;
    for (size_t i = 0; i <= HEADER_BYTES; i++) {
        sizes[n++] = i;
    }
    for (size_t i = 0; i < header.n_sections; i++) {
        struct drllm_packed_section section;
        memcpy(&section, pair.packed + HEADER_BYTES + i * sizeof section, sizeof section);
        const size_t begin = (size_t)section.offset, end = (size_t)(section.offset + section.size);
        const size_t more[] = {HEADER_BYTES + i * sizeof section, begin - 1, begin, begin + 1, end - 1, end, end + 1};
        for (size_t k = 0; k < 7; k++) {
            sizes[n++] = more[k];
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (sizes[i] >= pair.size) {
            continue;
        }
        /* A block of its own, so that a read behind it is seen. */
        uint8_t *cut = malloc(sizes[i] + 1);
        assert_non_null(cut);
        uint8_t *block = realloc(cut, sizes[i] > 0 ? sizes[i] : 1);
        memcpy(block, pair.packed, sizes[i]);
        assert_int_equal(try_open(block, sizes[i], false, &error), DRLLM_ERR_FORMAT);
        /* The same with a header that agrees. */
        if (sizes[i] >= HEADER_BYTES + header.n_sections * sizeof(struct drllm_packed_section)) {
            struct pair fixed = {NULL, 0, block, sizes[i]};
            struct drllm_packed_header changed = header;
            changed.file_size = sizes[i];
            set_header(&fixed, &changed);
            assert_int_equal(try_open(block, sizes[i], false, &error), DRLLM_ERR_FORMAT);
        }
        free(block);
    }
    free_pair(&pair);
}

/* Which byte lies in what. */
static enum drllm_packed_kind kind_at(const struct drllm_packed_file *file, const uint8_t *byte) {
    for (int kind = 1; kind < DRLLM_PACKED_KINDS; kind++) {
        const uint8_t *data = file->sections[kind].data;
        if (data != NULL && byte >= data && byte < data + file->sections[kind].size) {
            return (enum drllm_packed_kind)kind;
        }
    }
    return (enum drllm_packed_kind)0;
}

static void test_flipped_bytes(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    options.bpe = true;
    struct pair pair = make_pair(&options);
    struct drllm_packed_file file;
    struct drllm_error error = {0};
    assert_int_equal(drllm_packed_open(&file, pair.packed, pair.size, NULL), DRLLM_OK);
    const size_t table_end = HEADER_BYTES + file.n_sections * sizeof(struct drllm_packed_section);
    struct tiny_random random = {5};
    for (size_t at = 0; at < pair.size; at += at < table_end + 200 ? 1 : 1 + (size_t)(tiny_random_u64(&random) % 97)) {
        const enum drllm_packed_kind kind = kind_at(&file, pair.packed + at);
        const uint8_t was = pair.packed[at];
        pair.packed[at] ^= (uint8_t)(1u << tiny_random_u64(&random) % 8);
        const int status = try_open(pair.packed, pair.size, false, &error);
        if (at < table_end || (kind != 0 && kind != DRLLM_PACKED_WEIGHTS)) {
            assert_true(status == DRLLM_ERR_FORMAT || status == DRLLM_ERR_UNSUPPORTED);
        } else {
            assert_int_equal(status, DRLLM_OK);
            assert_int_equal(try_open(pair.packed, pair.size, true, &error),
                             kind == DRLLM_PACKED_WEIGHTS ? DRLLM_ERR_FORMAT : DRLLM_OK);
        }
        pair.packed[at] = was;
    }
    free_pair(&pair);
}

/* Correct the checksums, as somebody with bad intentions would. */
static void fix_checksums(struct pair *pair) {
    struct drllm_packed_header header;
    memcpy(&header, pair->packed, sizeof header);
    for (size_t i = 0; i < header.n_sections; i++) {
        uint8_t *place = pair->packed + HEADER_BYTES + i * sizeof(struct drllm_packed_section);
        struct drllm_packed_section section;
        memcpy(&section, place, sizeof section);
        section.checksum = drllm_crc32(0, pair->packed + section.offset, (size_t)section.size);
        memcpy(place, &section, sizeof section);
    }
    set_header(pair, &header);
}

/* What opens runs, whatever comes out. */
static void use(const struct drllm_model *model) {
    int32_t ids[256];
    char text[2048];
    size_t n = 0, size = 0;
    static const char words[] = "<s>ab cd ee</s> \xff zz <unk> abcabc";
    if (drllm_tokenize(model, words, sizeof words - 1, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, ids, 256, &n,
                       NULL) == DRLLM_OK) {
        (void)drllm_detokenize(model, ids, n, true, text, sizeof text, &size);
    }
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = 32;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    if (drllm_session_open(model, &params, &session, NULL) == DRLLM_OK) {
        const int32_t tokens[] = {0, 1, (int32_t)info.n_vocab - 1};
        (void)drllm_session_prefill(session, tokens, 3);
        drllm_session_close(session);
    }
}

static void test_hostile(void **state) {
    (void)state;
    for (int variant = 0; variant < 3; variant++) {
        struct tiny_options options = small_options();
        options.bpe = variant == 1;
        options.untied = variant == 2;
        options.embedding = variant == 2 ? DRLLM_FORMAT_Q8C : options.embedding;
        struct pair pair = make_pair(&options);
        uint8_t *good = malloc(pair.size);
        assert_non_null(good);
        memcpy(good, pair.packed, pair.size);
        struct drllm_packed_file file;
        assert_int_equal(drllm_packed_open(&file, pair.packed, pair.size, NULL), DRLLM_OK);
        struct tiny_random random = {(uint64_t)variant + 1};
        size_t n_opened = 0;
        for (int round = 0; round < 1500; round++) {
            /* Numbers at the edges, in a section that is believed. */
            static const uint32_t edges[] = {0, 1, 0x7FFFFFFF, 0x80000000u, 0xFFFFFFFFu, 0xFFFF, 255, 1000000};
            const enum drllm_packed_kind kind =
                (enum drllm_packed_kind)(1 + tiny_random_u64(&random) % (DRLLM_PACKED_KINDS - 1));
            const size_t size = file.sections[kind].size;
            if (file.sections[kind].data == NULL || kind == DRLLM_PACKED_WEIGHTS || size < 4) {
                continue;
            }
            const size_t at =
                (size_t)(file.sections[kind].data - pair.packed) + tiny_random_u64(&random) % (size / 4) * 4;
            const uint32_t number =
                round % 2 == 0 ? edges[tiny_random_u64(&random) % 8] : (uint32_t)tiny_random_u64(&random);
            memcpy(pair.packed + at, &number, sizeof number);
            fix_checksums(&pair);
            const struct drllm_model_params params = one_thread();
            struct drllm_model *model = NULL;
            struct drllm_error error = {0};
            const int status = drllm_model_open_memory(pair.packed, pair.size, &params, &model, &error);
            if (status == DRLLM_OK) {
                use(model);
                assert_int_equal(drllm_model_close(model), DRLLM_OK);
                n_opened++;
            } else {
                assert_true(status == DRLLM_ERR_FORMAT || status == DRLLM_ERR_UNSUPPORTED);
                assert_true(strlen(error.detail) > 0);
            }
            memcpy(pair.packed, good, pair.size);
        }
        assert_true(n_opened > 0);
        free(good);
        free_pair(&pair);
    }
}

/* ---- What runs out ---- */

static void test_memory_runs_out(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    for (int bpe = 0; bpe < 2; bpe++) {
        options.bpe = bpe != 0;
        struct pair pair = make_pair(&options);
        size_t n_calls = SIZE_MAX;
        for (size_t i = 0; i < n_calls; i++) {
            struct tiny_counted counted = {.fail_at = n_calls == SIZE_MAX && i == 0 ? SIZE_MAX : i - 1};
            struct drllm_model_params params = one_thread();
            params.allocator = tiny_counted_allocator(&counted);
            struct drllm_model *model = NULL;
            struct drllm_error error = {0};
            int status = drllm_model_open_memory(pair.packed, pair.size, &params, &model, &error);
            struct bytes bytes = {NULL, 0, 0, 0};
            if (status == DRLLM_OK) {
                status = drllm_packed_write(model, NULL, 0, take, &bytes, &error);
                assert_int_equal(drllm_model_close(model), DRLLM_OK);
            }
            if (i == 0) {
                assert_int_equal(status, DRLLM_OK);
                assert_memory_equal(bytes.data, pair.packed, pair.size);
                n_calls = counted.n_calls + 1;
            } else {
                assert_int_equal(status, DRLLM_ERR_MEMORY);
                assert_true(strlen(error.detail) > 0);
                assert_int_equal(bytes.size, 0);
            }
            assert_true(counted.n_live == 0 && !counted.wrong);
            free(bytes.data);
        }
        assert_true(n_calls > 8);
        free_pair(&pair);
    }
}

static void test_sink_fails(void **state) {
    (void)state;
    struct tiny_options options = small_options();
    struct pair pair = make_pair(&options);
    struct drllm_model *model = open_bytes(pair.gguf, pair.gguf_size);
    for (size_t limit = 1; limit < pair.size; limit += pair.size / 50) {
        struct bytes bytes = {NULL, 0, 0, limit};
        struct drllm_error error = {0};
        assert_int_equal(drllm_packed_write(model, NULL, 0, take, &bytes, &error), DRLLM_ERR_IO);
        assert_true(strlen(error.detail) > 0);
        free(bytes.data);
    }
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free_pair(&pair);
}

static void test_crc32(void **state) {
    (void)state;
    assert_true(drllm_crc32(0, "123456789", 9) == 0xCBF43926u); /* the check value of the algorithm's catalogue */
    assert_true(drllm_crc32(0, "", 0) == 0);
    assert_true(drllm_crc32(drllm_crc32(0, "12345", 5), "6789", 4) == 0xCBF43926u);
}

/* ---- The program ---- */

static void test_program(void **state) {
    (void)state;
    cli_require_program();
    char gguf[CLI_PATH_BYTES], packed[CLI_PATH_BYTES], other[CLI_PATH_BYTES];
    cli_write_spoken_model(cli_path("spoken.gguf", gguf), 3, false);
    cli_path("spoken.drllm", packed);
    cli_write(packed, "old", 3);
    cli_expect_success(RUN("pack", gguf, "-o", packed));
    assert_int_equal(cli_count_files("spoken.drllm"), 1); /* nothing lies beside it */
    struct cli_outcome a = RUN("run", "-m", gguf, "-p", "k", "--raw", "--temp", "0");
    struct cli_outcome b = RUN("run", "-m", packed, "-p", "k", "--raw", "--temp", "0");
    cli_expect_code(&a, 0);
    cli_expect_code(&b, 0);
    assert_string_equal(a.out, b.out);
    cli_expect_text(b.out, "lmnopqrstuvwxyz");
    cli_outcome_free(&a);
    cli_outcome_free(&b);
    a = RUN("tokenize", "-m", packed, "-p", "abc");
    cli_expect_code(&a, 0);
    cli_outcome_free(&a);
    a = RUN("inspect", packed, "--verify");
    cli_expect_code(&a, 0);
    cli_expect_text(a.out, "all checksums are right");
    cli_expect_text(a.out, "weights");
    cli_outcome_free(&a);
    cJSON *json = cli_expect_json(RUN("inspect", packed, "--json"));
    assert_string_equal(cli_string(json, "kind"), "packed");
    assert_int_equal((int)cli_number(json, "version"), 1);
    cJSON_Delete(json);

    /* What fails leaves the old file as it was. */
    size_t size, size_after;
    char *before = cli_read(packed, &size);
    cli_expect_failure(RUN("pack", gguf, "-r", gguf, "-o", packed), 1, "router");
    cli_expect_failure(RUN("pack", cli_path("none.gguf", other), "-o", packed), 1, "cannot open model");
    char *after = cli_read(packed, &size_after);
    assert_int_equal(size, size_after);
    assert_memory_equal(before, after, size);
    free(after);

    if (access("/dev/full", W_OK) == 0) {
        cli_expect_failure(RUN("pack", gguf, "-o", "/dev/full"), 1, "cannot write /dev/full: No space left");
    }
    cli_expect_failure(RUN("pack", gguf, "-o", "/nowhere/x.drllm"), 1, "cannot write /nowhere/x.drllm");
    cli_expect_failure(RUN("pack", gguf), 2, "-o");
    cli_expect_failure(RUN("pack", "-o", packed), 2, "model");
    cli_expect_failure(RUN("run", "-m", packed, "-p", "k", "--compute", "f32"), 1, "GGUF file that it was made from");

    before[size - size / 4] ^= 1; /* the weights are by far the most */
    cli_write(packed, before, size);
    cli_expect_failure(RUN("inspect", packed, "--verify"), 1, "checksum");
    free(before);
}

/* ---- The real model ---- */

static void test_real_model(void **state) {
    (void)state;
    real_need_model();
    const struct drllm_model *model = real_model(DRLLM_COMPUTE_EXACT);
    struct bytes bytes = {NULL, 0, 0, 0};
    assert_int_equal(drllm_packed_write(model, NULL, 0, take, &bytes, NULL), DRLLM_OK);
    struct drllm_model_params params = one_thread();
    params.verify = true;
    struct drllm_model *packed = NULL;
    assert_int_equal(drllm_model_open_memory(bytes.data, bytes.size, &params, &packed, NULL), DRLLM_OK);
    expect_same(model, packed);
    assert_int_equal(drllm_model_close(packed), DRLLM_OK);
    free(bytes.data);
}

static int close_all(void **state) {
    const int closed = real_close_models(state);
    return cli_remove_folder() == 0 ? closed : -1;
}

static int set_up(void **state) {
    (void)state;
    return cli_make_folder();
}

int drllm_test_packed(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_vocabulary_only),
        cmocka_unit_test(test_alignment_of_four),
        cmocka_unit_test(test_path_and_descriptor),
        cmocka_unit_test(test_routers),
        cmocka_unit_test(test_no_routers),
        cmocka_unit_test(test_compute_modes),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_sink_fails),
        cmocka_unit_test(test_program),
        cmocka_unit_test(test_real_model),
    };
    return drllm_run_group("packed", tests, set_up, close_all);
}
