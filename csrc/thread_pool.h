// A few threads that share out numbered pieces of work, whatever that is.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace arkfast {

// `threads` threads including the caller's, which works too; 0 and 1 start none. Calls from several threads share the workers. In a child
// made by fork, where the workers do not exist, the caller works alone.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls work(0) .. work(count - 1), in any order and at once; returns when all are done. Rethrows the first exception.
  void run(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  struct Job {
    const std::function<void(std::size_t)>* work;
    std::size_t count;
    std::atomic<std::size_t> next{0};
    int helpers = 0;
    std::exception_ptr error;
  };
  struct State {
    std::mutex mutex;
    std::condition_variable wake, done;
    std::deque<Job*> jobs;
    bool stop = false;
    std::vector<std::thread> threads;
  };

  void stop();
  static void serve(State& state);
  static void work_on(State& state, Job& job);

  State* state_ = nullptr;
  pid_t owner_;
};

}  // namespace arkfast
