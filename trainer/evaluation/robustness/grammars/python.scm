; Python. What the captures mean is in c.scm.
(identifier) @name
(function_definition body: (block) @body)

[(function_definition) (lambda) (list_comprehension) (set_comprehension)] @scope
[(dictionary_comprehension) (generator_expression)] @scope
(class_definition body: (block) @wall)
; Read where the function is made.
(default_parameter value: (_) @outside)
(typed_default_parameter value: (_) @outside)
(type) @outside
(for_in_clause right: (_) @outside)

(assignment left: (identifier) @declared)
(augmented_assignment left: (identifier) @declared)
(named_expression name: (identifier) @declared)
(pattern_list (identifier) @declared)
(tuple_pattern (identifier) @declared)
(list_pattern (identifier) @declared)
(list_splat_pattern (identifier) @declared)
(dictionary_splat_pattern (identifier) @declared)
(for_statement left: (identifier) @declared)
(for_in_clause left: (identifier) @declared)
(as_pattern_target (identifier) @declared)
(parameters (identifier) @declared @parameter)
(lambda_parameters (identifier) @declared @parameter)
(default_parameter name: (identifier) @declared @parameter)
(typed_parameter (identifier) @declared @parameter)
(typed_default_parameter name: (identifier) @declared @parameter)

(attribute attribute: (identifier) @other)
(keyword_argument name: (identifier) @other @keyword)

(call function: (identifier) @fixed)
(function_definition name: (identifier) @fixed)
(class_definition name: (identifier) @fixed)
[(import_statement) (import_from_statement) (global_statement) (nonlocal_statement)] @fixed
[(case_pattern) (type_alias_statement)] @fixed
(interpolation "=") @fixed
((identifier) @fixed (#any-of? @fixed "self" "cls"))
((call function: (identifier) @frozen)
 (#any-of? @frozen "dir" "eval" "exec" "execfile" "locals" "vars"))
(exec_statement) @frozen

(comment) @comment
[(comment) (string)] @opaque

[(comment) (expression_statement [(string) (concatenated_string)])] @apart

(block) @block
(expression_statement (assignment left: (identifier) @target) @harmless) @movable
[(identifier) (integer) (float) (string) (string_start) (string_content)] @harmless
[(string_end) (escape_sequence) (true) (false) (none) (list) (tuple)] @harmless
[(parenthesized_expression)] @harmless
(unary_operator operator: ["-" "+" "~"]) @harmless @numeric
(binary_operator operator: ["+" "-" "*" "&" "|" "^" "<<" ">>"]) @harmless @numeric
[(try_statement) (with_statement) (lambda) (class_definition) (function_definition)] @watcher
(generator_expression) @watcher
