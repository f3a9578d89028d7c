// Prints which instructions attention executes for one page of K and V, on a CPU that need not have them:
//
//   page-trace ISA K_FORMAT V_FORMAT HEAD_DIM N_ROWS
//
// One hexadecimal address per line, in order, from one call of the key kernel to the next, driver included;
// scripts/estimate-kernels.py turns them into cycles. The program steps through itself. An instruction that
// this CPU does not know is recorded and skipped, so no result is right; what is executed depends on the
// results in a few places only, and there as if all were zero: no second pass, no new maximum. FORMAT is a
// cold format or f16; not q3 or q2 for K, whose pages of zeros are no blocks. N_ROWS are query rows of one
// head, at most one tile of them.

#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention/item_runner.h"
#include "common/command_line.h"
#include "common/run_tool.h"
#include "kernels/isa_list.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"

namespace {

using namespace mixed_kv;

constexpr int kPages = 4, kTracedPage = 1;
constexpr std::size_t kMaxInstructions = std::size_t{1} << 21;

std::uintptr_t trace[kMaxInstructions];  // what is executed next, each time
std::size_t n_traced = 0;

constexpr greg_t kTrapFlag = 0x100;

// Also from signal handlers, where nothing can be thrown.
[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "page-trace: error: %s\n", what);
    std::_Exit(1);
}

// Length of a VEX or EVEX instruction.
std::size_t length(const std::uint8_t* code) {
    std::size_t at = 0;  // of the opcode
    int map = 1;
    switch (code[0]) {
        case 0x62:
            map = code[1] & 7, at = 4;
            break;
        case 0xc4:
            map = code[1] & 31, at = 3;
            break;
        case 0xc5:
            at = 2;
            break;
        default:
            fail("an illegal instruction that is neither VEX nor EVEX");
    }
    const int opcode = code[at++], modrm = code[at++];
    const int mod = modrm >> 6, rm = modrm & 7;
    int base = rm;
    if (mod != 3 && rm == 4) base = code[at++] & 7;
    if (mod == 1) at += 1;
    if (mod == 2 || (mod == 0 && base == 5)) at += 4;
    constexpr std::uint8_t kWithImmediate[] = {0x70, 0x71, 0x72, 0x73, 0xc2, 0xc4, 0xc5, 0xc6};
    const bool immediate =
        map == 3 || (map == 1 && std::ranges::find(kWithImmediate, opcode) != std::end(kWithImmediate));
    return at + (immediate ? 1 : 0);
}

// GCC keeps addresses in vector and mask registers, also in those that this CPU lacks. So moves between these
// and general registers are carried out, on copies.
std::uint64_t upper_registers[16], masks[8];

void move_word(const std::uint8_t* code, ucontext_t& context) {
    const auto general = [&](int number) -> greg_t& {
        constexpr int kPlace[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return context.uc_mcontext.gregs[kPlace[number]];
    };
    const int reg_high = (code[1] & 0x80) == 0 ? 8 : 0;
    if (code[0] == 0xc5 || code[0] == 0xc4) {
        const int at = code[0] == 0xc5 ? 2 : 3;
        const int opcode = code[at], modrm = code[at + 1];
        const int rm_high = code[0] == 0xc4 && (code[1] & 0x20) == 0 ? 8 : 0;
        if (opcode == 0x92) masks[modrm >> 3 & 7] = std::uint64_t(general((modrm & 7) | rm_high));
        if (opcode == 0x93) general((modrm >> 3 & 7) | reg_high) = greg_t(masks[modrm & 7]);
        return;
    }
    const int map = code[1] & 7, opcode = code[4], modrm = code[5];
    const bool is_upper = (code[1] & 0x10) == 0, from_upper = (code[3] & 0x08) == 0;
    if (modrm >> 6 != 3) return;
    const int reg = (modrm >> 3 & 7) | reg_high;
    greg_t& word = general((modrm & 7) | ((code[1] & 0x20) == 0 ? 8 : 0));
    if (map == 1 && opcode == 0x6e && is_upper) {  // vmovq xmm16.., general
        upper_registers[reg] = std::uint64_t(word);
    } else if (map == 1 && opcode == 0x7e && is_upper) {  // vmovq general, xmm16..
        word = greg_t(upper_registers[reg]);
    } else if (map == 3 && opcode == 0x22 && !is_upper && from_upper) {  // vpinsrq xmm0.., xmm16.., general
        const std::uint64_t low = upper_registers[~code[2] >> 3 & 15], high = std::uint64_t(word);
        auto* to = context.uc_mcontext.fpregs->_xmm[reg].element;
        std::memcpy(to, &low, 8), std::memcpy(to + 2, &high, 8);
    }
}

// The result of what is skipped is zero, where it is a vector register that this CPU has, or a mask.
void clear_result(const std::uint8_t* code, ucontext_t& context) {
    if (code[0] != 0x62) return;
    const int map = code[1] & 7, opcode = code[4], modrm = code[5];
    const bool extracts = map == 3 && (opcode == 0x19 || opcode == 0x1b || opcode == 0x39 || opcode == 0x3b);
    const bool shifts_by_immediate = map == 1 && opcode >= 0x71 && opcode <= 0x73;
    const bool to_mask =
        (map == 1 &&
         (opcode == 0xc2 || (opcode >= 0x64 && opcode <= 0x66) || (opcode >= 0x74 && opcode <= 0x76))) ||
        (map == 2 && (opcode == 0x26 || opcode == 0x27 || opcode == 0x29 || opcode == 0x37)) ||
        (map == 3 && (opcode == 0x1e || opcode == 0x1f || opcode == 0x3e || opcode == 0x3f));
    const bool general = (map == 1 && (opcode == 0x6e || opcode == 0x7e)) || (map == 3 && opcode == 0x22);
    if (to_mask) masks[modrm >> 3 & 7] = 0;
    if (to_mask || general) return;
    int reg = (modrm >> 3 & 7) | ((code[1] & 0x80) == 0 ? 8 : 0) | ((code[1] & 0x10) == 0 ? 16 : 0);
    if (shifts_by_immediate) reg = (~code[2] >> 3 & 15) | ((code[3] & 0x08) == 0 ? 16 : 0);
    if (extracts && modrm >> 6 == 3)
        reg = (modrm & 7) | ((code[1] & 0x20) == 0 ? 8 : 0) | ((code[1] & 0x40) == 0 ? 16 : 0);
    if (reg >= 16) return;
    constexpr std::ptrdiff_t kUpperHalves = 576;  // of ymm registers, in the state that XSAVE writes
    auto* state = reinterpret_cast<std::byte*>(context.uc_mcontext.fpregs);
    std::memset(&context.uc_mcontext.fpregs->_xmm[reg], 0, 16);
    std::memset(state + kUpperHalves + std::ptrdiff_t(reg) * 16, 0, 16);
}

void record(std::uintptr_t next) {
    if (n_traced == kMaxInstructions) fail("too many instructions");
    trace[n_traced++] = next;
}

void on_step(int, siginfo_t*, void* context) {
    record(std::uintptr_t(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]));
}

void on_unknown(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const auto at = std::uintptr_t(registers[REG_RIP]);
    move_word(reinterpret_cast<const std::uint8_t*>(at), *static_cast<ucontext_t*>(context));
    clear_result(reinterpret_cast<const std::uint8_t*>(at), *static_cast<ucontext_t*>(context));
    const std::uintptr_t next = at + length(reinterpret_cast<const std::uint8_t*>(at));
    registers[REG_RIP] = greg_t(next);
    record(next);
}

// An address that went through an instruction which is skipped and not among those carried out above.
void on_fault(int, siginfo_t*, void*) { fail("lost an address in skipped instructions"); }

void handle(int signal, void (*handler)(int, siginfo_t*, void*)) {
    struct sigaction action {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO;
    sigaction(signal, &action, nullptr);
}

// The handlers see the flag only where the kernel resumes this code, so it is set and cleared in place.
void step_through() {
    __asm__ volatile("pushfq; orq %0, (%%rsp); popfq" : : "i"(kTrapFlag) : "memory", "cc");
}
void step_no_more() {
    __asm__ volatile("pushfq; andq %0, (%%rsp); popfq" : : "i"(~kTrapFlag) : "memory", "cc");
}

// Pages of one head, all of them zero.
struct Cache {
    std::vector<std::byte> memory;
    std::vector<Page> pages;
    PageTable table;

    Cache(KvRole role, const ColdFormat* format, int head_dim) : pages(kPages) {
        table.layout.shape = {1, head_dim};
        table.layout.role = role;
        std::size_t bytes = table.layout.head_bytes() * kPageTokens;
        if (format != nullptr) {
            table.layout.format = format;
            table.layout.format_index = int(format - cold_formats().data());
            table.layout.block_bytes = bytes = format->block_bytes(role, head_dim);
        }
        memory.resize(kPages * bytes + 64);
        std::byte* first = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
        if (format != nullptr) format->check_block(role, head_dim, first);
        for (int i = 0; i < kPages; ++i) {
            Page& page = pages[std::size_t(i)];
            page.state = is_cold() ? PageState::cold : PageState::hot;
            page.written = ~std::uint64_t{0};
            page.data = first + std::size_t(i) * bytes;
            if (!is_cold()) continue;
            page.n_blocks = 1;
            page.first.data = page.data;
            page.first.cells = page.written;
            page.first.format = static_cast<std::uint8_t>(table.layout.format_index);
        }
        table.pages = pages.data();
        table.n_pages = kPages;
    }
    bool is_cold() const { return table.layout.format != nullptr; }
};

void run(kernels::KernelSet set, const ColdFormat* k_format, const ColdFormat* v_format, int head_dim,
         int n_rows) {
    set.scale = [](float*, std::ptrdiff_t, float) noexcept {};  // a new maximum, which is rare
    const Cache k(KvRole::key, k_format, head_dim), v(KvRole::value, v_format, head_dim);
    const std::vector<float> q(std::size_t(n_rows * head_dim));
    AttentionArgs args;
    args.n_q = n_rows;
    args.n_kv = kPages * kPageTokens;
    args.n_head = args.n_head_kv = 1;
    args.head_dim_k = args.head_dim_v = head_dim;
    args.q = q.data();
    args.q_row_stride = args.q_head_stride = std::ptrdiff_t(sizeof(float)) * head_dim;
    args.k = &k.table;
    args.v = &v.table;
    MaskPages mask_pages;
    mask_pages.classify(args.mask, 1, args.n_q, args.n_kv);
    attention::Plan plan;
    plan.build(args, mask_pages, 1);
    if (plan.items().size() != 1) fail("N_ROWS: more than a tile");

    attention::Sizes sizes;
    sizes.max_rows = plan.max_rows();
    sizes.block_rows = std::min(plan.max_rows(), set.max_rows);
    sizes.q_stride = sizes.o_stride = sizes.v_stride = attention::round_up(head_dim, 16);
    sizes.v_rotation = hadamard_size(head_dim);
    sizes.kernel_bytes = set.scratch_bytes(head_dim);
    attention::Buffer memory;
    memory.reserve(attention::Scratch::bytes(sizes));
    const attention::Scratch scratch(sizes, memory.data());

    attention::ItemRunner runner(args, set, plan, sizes, scratch);
    handle(SIGILL, on_unknown);
    handle(SIGTRAP, on_step);
    handle(SIGSEGV, on_fault);
    __asm__ volatile("vzeroall" : : : "memory");
    step_through();
    runner.run(plan.items().front());
    step_no_more();

    const auto start = reinterpret_cast<std::uintptr_t>(
        k.is_cold() ? set.formats[k.table.layout.format_index].qk : set.qk_f16);
    const int block = k.is_cold() ? set.max_rows : set.fp16_rows;
    const int calls_per_page = (sizes.max_rows + block - 1) / block;
    int calls = 0;
    for (std::size_t i = 0; i < n_traced; ++i) {
        if (trace[i] == start) ++calls;
        // Repeated string instructions trap once per round.
        if (calls > 0 && (calls - 1) / calls_per_page == kTracedPage && trace[i] != trace[i - 1])
            std::printf("%zx\n", std::size_t(trace[i]));
    }
    if (calls <= kTracedPage * calls_per_page) fail("the key kernel was not reached");
}

const kernels::KernelSet& set_named(const std::string& name) {
    for (const kernels::KernelSet* set : kernels::kKernelSets) {
        if (name == set->name) return *set;
    }
    throw tools::UsageError("this build has no ISA " + name);
}

// nullptr: f16.
const ColdFormat* format_named(const std::string& name) {
    const ColdFormat* format = find_cold_format(name);
    if (format == nullptr && name != "f16") throw tools::UsageError("unknown format " + name);
    return format;
}

int start(int argc, char** argv) {
    tools::CommandLine command(
        "page-trace",
        "Prints the address of every instruction that attention executes for one page of K and V.");
    std::string isa, k_format, v_format;
    int head_dim = 0, n_rows = 0;
    command.option("ISA", isa, "Kernel set").required();
    command.option("K_FORMAT", k_format, "Format of K: f16 or a cold format other than q3 and q2").required();
    command.option("V_FORMAT", v_format, "Format of V: f16 or a cold format").required();
    command.option("HEAD_DIM", head_dim, "Channels of a head").required().range(1, kernels::kMaxHeadDim);
    command.option("N_ROWS", n_rows, "Query rows of one head, at most one tile of them")
        .required()
        .range(1, kPages * kPageTokens);
    if (!command.parse(argc, argv)) return tools::kExitOk;
    run(set_named(isa), format_named(k_format), format_named(v_format), head_dim, n_rows);
    return tools::kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
    return tools::run_tool("page-trace", [&] { return start(argc, argv); });
}
