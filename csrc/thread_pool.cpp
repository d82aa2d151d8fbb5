#include "thread_pool.h"

#include <algorithm>

#include <unistd.h>

namespace arkfast {

ThreadPool::ThreadPool(int threads) : owner_(getpid()) {
  if (threads < 2) return;
  state_ = new State;
  try {
    for (int i = 1; i < threads; ++i) state_->threads.emplace_back([state = state_] { serve(*state); });
  } catch (...) {  // the system grants no more threads
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  // A fork's child has the state but not the threads: destroying the condition variable would wait for them for ever.
  if (state_ == nullptr || owner_ != getpid()) return;
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
  delete state_;
}

void ThreadPool::work_on(State& state, Job& job) {
  for (std::size_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) {
    try {
      (*job.work)(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(state.mutex);
      if (!job.error) job.error = std::current_exception();
    }
  }
}

void ThreadPool::serve(State& state) {
  std::unique_lock<std::mutex> lock(state.mutex);
  for (;;) {
    state.wake.wait(lock, [&] { return state.stop || !state.jobs.empty(); });
    if (state.stop) return;
    Job& job = *state.jobs.front();
    ++job.helpers;
    lock.unlock();
    work_on(state, job);
    lock.lock();
    // All pieces are taken, so nobody else shall join. The caller may have seen that first.
    const auto at = std::find(state.jobs.begin(), state.jobs.end(), &job);
    if (at != state.jobs.end()) state.jobs.erase(at);
    if (--job.helpers == 0) state.done.notify_all();
  }
}

void ThreadPool::run(std::size_t count, const std::function<void(std::size_t)>& work) {
  if (state_ == nullptr || count < 2 || owner_ != getpid()) {
    for (std::size_t i = 0; i < count; ++i) work(i);
    return;
  }
  Job job;
  job.work = &work;
  job.count = count;
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->jobs.push_back(&job);
  }
  state_->wake.notify_all();
  work_on(*state_, job);
  std::unique_lock<std::mutex> lock(state_->mutex);
  const auto at = std::find(state_->jobs.begin(), state_->jobs.end(), &job);
  if (at != state_->jobs.end()) state_->jobs.erase(at);
  state_->done.wait(lock, [&] { return job.helpers == 0; });
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace arkfast
