# What pint is not to report, and why. Tests add the block `prometheus` where there is a server to ask.

rule {
  match {
    kind = "alerting"
    name = "Watchdog"
  }
  # It is meant to fire always: whoever receives it wakes somebody when it stops.
  disable = ["alerts/comparison"]
}

rule {
  match {
    kind = "alerting"
    name = "Collector.+|RuleEvaluationFailing|NotificationsFailing"
  }
  # Counters of failures are born at the first one, which increase() does not see. So these alerts also ask whether there
  # is a counter now that was not there before, and that is a direct read.
  disable = ["promql/counter"]
}

rule {
  match {
    path = ".*/slos\\.yaml"
  }
  # Windows of days are a group of their own, asked every two minutes, because each evaluation reads all of their samples.
  # What they read of the other group may be 15 s old, of a window of days.
  disable = ["rule/dependency"]
}
