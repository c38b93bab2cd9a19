// Hooks into the dispatcher for the time of a recording. An op with a gradient passes the
// dispatcher twice, above autograd and below: that is one call, whose time is the outer one's and
// whose tensors are the inner one's, which the kernel saw.
#include "call_record.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "choice.h"

namespace deepgen::recording {
namespace {

constexpr std::string_view ours = "deepgen_ext::";

int64_t now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

struct Events {
  c10::Event begin, end;
};

// A call on its way.
struct Open : at::ObserverContext {
  Open* parent = nullptr;
  Open* root = this;  // of the same call, where this is it further down the dispatcher
  bool has_results = false, is_traced = false;
  int exceptions = 0;
  int64_t start = 0, in_children = 0;
  Signature signature{};
  std::vector<at::Tensor> kept;  // whose addresses are in the signature
  std::optional<c10::Device> device;
  std::optional<Events> events;
};

thread_local Open* innermost = nullptr;

struct Hash {
  size_t operator()(const Signature& s) const {
    uint64_t h = reinterpret_cast<uintptr_t>(s.schema);
    const auto mix = [&h](uint64_t word) { h = (h ^ word) * 0x9e3779b97f4a7c15u + (h >> 29); };
    for (const int64_t word : s.arguments) mix(word);
    for (const int64_t word : s.results) mix(word);
    for (const char* choice : s.choices) mix(reinterpret_cast<uintptr_t>(choice));
    return h;
  }
};

struct Log {
  std::mutex mutex;
  int64_t sessions = 0;
  at::CallbackHandle hook = 0;
  std::unordered_map<Signature, int64_t, Hash> index;
  Record record;
  std::vector<std::shared_ptr<Events>> events;  // of each call, null on the CPU
  std::vector<at::Tensor> kept;
  std::unordered_map<std::string, const c10::FunctionSchema*> schemas;
};

Log& the_log() {
  static Log* const log = new Log;  // never destroyed: other threads may outlive the module
  return *log;
}

// The bytes of distinct elements: an expanded dimension is read once.
int64_t bytes_of(const at::Tensor& t) {
  int64_t elements = 1;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.stride(d) != 0 || t.size(d) == 0) elements *= t.size(d);
  return elements * static_cast<int64_t>(t.element_size());
}

// A tensor without memory: traced by a compiler, not run.
bool is_traced(const at::Tensor& t) {
  return t.is_meta() || t.key_set().has(c10::DispatchKey::Python) ||
         t.key_set().has(c10::DispatchKey::Functionalize);
}

Address address_of(const at::Tensor& t) {
  return {reinterpret_cast<int64_t>(t.const_data_ptr()), t.numel(),
          static_cast<int64_t>(t.element_size())};
}

// Appends a tensor; false where it is traced.
bool describe(const at::Tensor& t, Open& call, Words& to) {
  if (!t.defined()) {
    to.push_back(none);
    return true;
  }
  if (is_traced(t)) return false;
  if (t.is_cuda() && !call.device) call.device = t.device();
  const bool is_index = t.scalar_type() == at::kLong || t.scalar_type() == at::kInt;
  if (is_index && t.is_cpu() && t.dim() == 1 && t.is_contiguous()) {
    const Address address = address_of(t);
    to.push_back(indices);
    to.insert(to.end(), address.begin(), address.end());
    call.kept.push_back(t);
    return true;
  }
  to.insert(to.end(), {tensor, static_cast<int64_t>(t.scalar_type()),
                       static_cast<int64_t>(t.device().type()), bytes_of(t), t.dim()});
  to.insert(to.end(), t.sizes().begin(), t.sizes().end());
  return true;
}

bool describe_value(const c10::IValue& value, Open& call, Words& to) {
  if (value.isTensor()) return describe(value.toTensor(), call, to);
  if (value.isList()) {
    const auto elements = value.toListRef();
    to.insert(to.end(), {list, static_cast<int64_t>(elements.size())});
    for (const c10::IValue& element : elements)
      if (!describe_value(element, call, to)) return false;
    return true;
  }
  if (value.isInt()) {
    to.insert(to.end(), {integer, value.toInt()});
  } else if (value.isDouble()) {
    to.insert(to.end(), {real, std::bit_cast<int64_t>(value.toDouble())});
  } else if (value.isBool()) {
    to.insert(to.end(), {boolean, value.toBool()});
  } else if (value.isString()) {
    const std::string_view letters = value.toStringView();
    to.insert(to.end(), {text, static_cast<int64_t>(letters.size())});
    to.insert(to.end(), letters.begin(), letters.end());
  } else {
    to.push_back(none);
  }
  return true;
}

bool describe_all(std::span<const c10::IValue> values, Open& call, Words& to) {
  to.clear();
  for (const c10::IValue& value : values)
    if (!describe_value(value, call, to)) return false;
  return true;
}

const c10::FunctionSchema* schema_of(const char* name) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  auto& schema = log.schemas[name];
  if (!schema) schema = &c10::Dispatcher::singleton().findSchemaOrThrow(name, "").schema();
  return schema;
}

c10::Event recorded_now(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  c10::Event event(device.type(), c10::EventFlag::BACKEND_DEFAULT);  // that is, with a time
  event.record(guard.getStream(device));
  return event;
}

std::unique_ptr<at::ObserverContext> begin_call(const at::RecordFunction& function) {
  const char* name = function.name();
  if (std::strncmp(name, ours.data(), ours.size()) != 0) return nullptr;
  auto call = std::make_unique<Open>();
  call->signature.schema = schema_of(name);
  if (innermost && innermost->signature.schema == call->signature.schema)
    call->root = innermost->root;
  Open& root = *call->root;
  root.kept.clear();
  if (!describe_all({function.inputs().data(), function.inputs().size()}, root,
                    root.signature.arguments)) {
    root.is_traced = true;
    if (&root == call.get()) return nullptr;
  }
  call->exceptions = std::uncaught_exceptions();
  call->parent = innermost;
  innermost = call.get();
  if (&root == call.get() && call->device) {
    call->events.emplace(Events{recorded_now(*call->device), c10::Event(call->device->type())});
  }
  call->start = now();
  return call;
}

void keep(Open& call, Call entry) {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.sessions == 0) return;
  const auto [found, is_new] =
      log.index.try_emplace(call.signature, static_cast<int64_t>(log.record.signatures.size()));
  if (is_new) {
    log.record.signatures.push_back(call.signature);
    for (const at::Tensor& t : call.kept) {  // alive, so that no other tensor gets its address
      const at::Tensor numbers = t.scalar_type() == at::kLong ? t : t.to(at::kLong);
      const int64_t* const first = numbers.const_data_ptr<int64_t>();
      log.record.vectors.try_emplace(address_of(t), first, first + numbers.numel());
      log.kept.push_back(t);
    }
  }
  entry.signature = found->second;
  log.record.calls.push_back(entry);
  log.events.push_back(call.events ? std::make_shared<Events>(std::move(*call.events)) : nullptr);
}

void end_call(const at::RecordFunction& function, at::ObserverContext* context) {
  if (!context) return;
  const int64_t end = now();
  auto& call = static_cast<Open&>(*context);
  innermost = call.parent;
  if (std::uncaught_exceptions() > call.exceptions) return;  // refused: nothing was computed
  Open& root = *call.root;
  if (!root.has_results) {
    root.has_results = true;
    if (!describe_all(function.outputs(), root, root.signature.results)) root.is_traced = true;
  }
  if (&root != &call) return;
  const int64_t total = end - call.start;
  if (call.parent) call.parent->root->in_children += total;
  if (call.is_traced) return;
  if (call.events) call.events->end = recorded_now(*call.device);
  keep(call, {0, at::RecordFunction::currentThreadId(), call.start, total, total - call.in_children,
              call.events ? NAN : -1.0});
}

void take_choice(const char* what, const char* why) {
  if (!innermost) return;
  auto& choices = innermost->root->signature.choices;
  for (size_t i = 0; i < choices.size(); i += 2)
    if (choices[i] == what && choices[i + 1] == why) return;
  choices.insert(choices.end(), {what, why});
}

}  // namespace

int64_t start() {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.sessions++ == 0) {
    log.hook = at::addGlobalCallback(at::RecordFunctionCallback(begin_call, end_call)
                                         .needsInputs(true)
                                         .needsOutputs(true)
                                         .scopes({at::RecordScope::FUNCTION}));
    choice_listener = take_choice;
  }
  return static_cast<int64_t>(log.record.calls.size());
}

Record stop(int64_t token) {
  Log& log = the_log();
  Record result;
  std::vector<std::shared_ptr<Events>> events;
  {
    const std::lock_guard lock(log.mutex);
    result.signatures = log.record.signatures;
    result.vectors = log.record.vectors;
    result.calls.assign(log.record.calls.begin() + token, log.record.calls.end());
    events.assign(log.events.begin() + token, log.events.end());
    if (--log.sessions == 0) {
      at::removeCallback(log.hook);
      choice_listener = nullptr;
      log.record = {};
      log.index.clear();
      log.events.clear();
      log.kept.clear();
    }
  }
  for (size_t i = 0; i < events.size(); ++i) {
    if (!events[i]) continue;
    try {
      events[i]->end.synchronize();
      result.calls[i].device_time = 1e-3 * events[i]->begin.elapsedTime(events[i]->end);
    } catch (const std::exception&) {
      // Captured into a CUDA graph: such events have no time. It stays NaN.
    }
  }
  return result;
}

bool is_on() {
  return choice_listener.load() != nullptr;
}

bool is_hooked() {
  return at::hasCallbacks();
}

}  // namespace deepgen::recording
