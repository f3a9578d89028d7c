#include "kernels/shared/softmax.h"

#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::neon {

void logits(const LogitArgs& args) noexcept { shared::logits<Lanes>(args); }
void softmax(const SoftmaxArgs& args) noexcept { shared::softmax<Lanes>(args); }

}  // namespace mixed_kv::kernels::neon
